"""The supernet with its candidates batched: the same function as the modular one, many times faster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.nn import connect_direct_feedback
from bionas_fast.space import Candidate, Space
from bionas_fast.space.cells import PreprocessedCell
from bionas_fast.supernet.architecture import Mixing
from bionas_fast.supernet.modular import MixedOp, ModularSupernet, SearchCell, shuffle
from bionas_fast.supernet.stacked_edges import StackedEdges, add


class StackedCell(PreprocessedCell):
    """The batched form of a :class:`SearchCell`."""

    def __init__(self, cell: SearchCell) -> None:
        nn.Module.__init__(self)
        self.kind, self.space, self.out_channels = cell.kind, cell.space, cell.out_channels
        self.inputs, self.strides = cell.inputs, cell.strides
        for i, module in enumerate(cell.preprocessing):
            self.add_module(f"preprocess{i}", module)
        self.partial_channels: int = cell.edges[0].partial_channels  # type: ignore[assignment]
        self.states = nn.ModuleList(
            StackedEdges(edges, self.stride(source)) for source, edges in enumerate(_leaving(cell))
        )

    def exchange(self, cell: SearchCell, action: str) -> None:
        """``read`` everything from a modular cell, or ``write`` it to one."""
        for own, theirs in zip(self.preprocessing, cell.preprocessing, strict=True):
            _copy(own, theirs, action)
        state: Any
        for state, edges in zip(self.states, _leaving(cell), strict=True):
            state.exchange(edges, action)

    def forward(self, *inputs: Any) -> Tensor:
        """As :class:`SearchCell`: images [N, C, H, W] in and out, in memory with the channels last."""
        *outputs, weights = inputs
        return self._run(outputs, weights, None)

    def population(self, outputs: Sequence[Tensor], weights: Tensor, shared: Sequence[bool]) -> Tensor:
        """The same for P individuals with mixing weights [P, edges, candidates] → [P·N, out_channels, H', W'].

        Args:
            outputs: of the preceding cells, for every individual, one after the other; or for all, where ``shared``.
        """
        return self._run(outputs, weights, shared)

    def _run(self, outputs: Sequence[Tensor], weights: Tensor, shared: Sequence[bool] | None) -> Tensor:
        first = self.first_states([s.contiguous(memory_format=torch.channels_last) for s in outputs])
        states: list[Any] = [x.permute(0, 2, 3, 1) for x in first] + [None] * self.space.nodes
        bypass: list[Any] = [None] * len(states)
        leaving = _rows_leaving(self.space)
        ordered = weights[..., [row for own in leaving for row in own], :].split([len(own) for own in leaving], dim=-2)
        # A node is complete when the edges of all states before it have been added.
        for source, (own, mixing) in enumerate(zip(leaving, ordered, strict=True)):
            state: Any = self.states[source]
            nodes = [self.inputs + self.space.edges[row][0] for row in own]
            x, common = states[source], bool(shared and source < self.inputs and shared[source])
            if self.partial_channels > 1:
                x, other = x.split([state.channels, x.shape[-1] - state.channels], dim=-1)
                other = state.around(other.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                for node, scale in zip(nodes, mixing.sum(dim=-1).unbind(dim=-1), strict=True):
                    bypass[node] = add(bypass[node], _scaled(other, scale, common))
            into = [states[node] for node in nodes]
            if shared is None:
                sums = state(x, mixing, into)
            else:
                each = zip(into, state.population(x, mixing, common), strict=True)
                sums = [add(total, out) for total, out in each]
            for node, out in zip(nodes, sums, strict=True):
                states[node] = out
            complete = source + 1
            if bypass[complete] is not None:
                both = torch.cat([states[complete], bypass[complete]], dim=-1)
                states[complete] = shuffle(both, self.partial_channels, dim=3)
        return torch.cat([states[state] for state in self.space.output], dim=-1).permute(0, 3, 1, 2)


def _scaled(x: Tensor, scale: Tensor, shared: bool) -> Tensor:
    """scale · x; with a scale for each of P individuals [P·N, …], of x [P·N, …] or, ``shared``, [N, …]."""
    if not scale.dim():
        return scale * x
    each = x.unflatten(0, (1 if shared else len(scale), -1))
    return (scale.view(-1, *[1] * x.dim()) * each).flatten(0, 1)


def _rows_leaving(space: Space) -> list[list[int]]:
    """The rows of the edges that leave each state which any edge leaves: all but the last."""
    sources = range(space.inputs + space.nodes - 1)
    return [[row for row, edge in enumerate(space.edges) if edge[1] == source] for source in sources]


def _leaving(cell: SearchCell) -> Iterable[list[MixedOp]]:
    edges: list[Any] = list(cell.edges)
    return [[edges[row] for row in rows] for rows in _rows_leaving(cell.space)]


def _copy(own: nn.Module, theirs: nn.Module, action: str) -> None:
    """``read`` all state from the other module, or ``write`` it to it."""
    source, target = (theirs, own) if action == "read" else (own, theirs)
    target.load_state_dict(source.state_dict())


#: Of so many values may a map of a population consist.
AT_ONCE = 2**26


class StackedSupernet(ModularSupernet):
    """The batched supernet; see :func:`bionas_fast.build_supernet`. The same seed gives the modular one's weights."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._build = (args, settings)

    @staticmethod
    def _make_cell(
        space: Space, candidates: tuple[Candidate, ...], partial_channels: int, *shape: Any
    ) -> PreprocessedCell:
        return StackedCell(SearchCell(space, candidates, partial_channels, *shape))

    @torch.no_grad()
    def population(self, x: Tensor, mixing: Mixing) -> Tensor:
        """As the modular one, with the individuals side by side on the batch axis.

        What no individual changes, which is all in front of the first mixed sums, is computed once.
        """
        self._check_input(x)
        self._check_population(mixing)
        individuals = len(mixing[self.space.kinds[0]])
        cells: list[Any] = list(self.cells)
        largest = max(1, AT_ONCE // (x.shape[0] * math.prod(x.shape[2:]) * cells[0].out_channels))
        if individuals > largest:
            parts = zip(*(mixing[kind].split(largest) for kind in self.space.kinds), strict=True)
            return torch.cat([self.population(x, dict(zip(self.space.kinds, part, strict=True))) for part in parts])
        shared = [True] * self.space.inputs  # whether the present cell's inputs are those of all individuals

        def run(cell: Any, outputs: tuple[Tensor, ...]) -> Tensor:
            out = cell.population(outputs, mixing[cell.kind], shared)
            shared[:] = [*shared[1:], False]
            return out

        return self._classify(self._features(x, run)).unflatten(0, (individuals, -1))

    def load_modular(self, net: ModularSupernet) -> None:
        """Take all weights, alphas, feedback, streams and statistics from a modular supernet of the same shape."""
        self._exchange(net, "read")

    def to_modular(self) -> ModularSupernet:
        """The same supernet with one module per candidate."""
        args, settings = self._build
        with torch.random.fork_rng(devices=[]):
            net = ModularSupernet(*args, **settings)
        connect_direct_feedback(net, self.num_classes)
        net.to(next(self.stem.parameters())).train(self.training)
        self._exchange(net, "write")
        return net

    @torch.no_grad()
    def _exchange(self, net: ModularSupernet, action: str) -> None:
        for name in ("stem", "final", "classifier", "architecture"):
            _copy(getattr(self, name), getattr(net, name), action)
        theirs: Any
        for own, theirs in zip(self.cells, net.cells, strict=True):
            if isinstance(own, StackedCell):
                own.exchange(theirs, action)
            else:
                _copy(own, theirs, action)
