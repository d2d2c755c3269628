"""The supernet with its candidates batched: the same function as the modular one, many times faster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.space import Candidate, Space
from bionas_fast.space.cells import PreprocessedCell
from bionas_fast.supernet.architecture import Mixing
from bionas_fast.supernet.modular import MixedOp, ModularSupernet, SearchCell, shuffle
from bionas_fast.supernet.state_edges import StateEdges, add


class StackedCell(PreprocessedCell):
    """The batched form of a :class:`SearchCell`."""

    def __init__(self, cell: SearchCell) -> None:
        nn.Module.__init__(self)
        self.kind, self.space, self.out_channels = cell.kind, cell.space, cell.out_channels
        self.preprocess0, self.preprocess1 = cell.preprocess0, cell.preprocess1
        self.partial_channels: int = cell.edges[0].partial_channels  # type: ignore[assignment]
        self.states = nn.ModuleList(
            StateEdges(edges, 2 if self.kind == "reduce" and source < 2 else 1)
            for source, edges in enumerate(_leaving(cell))
        )

    def exchange(self, cell: SearchCell, action: str) -> None:
        """``read`` everything from a modular cell, or ``write`` it to one."""
        for name in ("preprocess0", "preprocess1"):
            own, theirs = getattr(self, name), getattr(cell, name)
            source, target = (theirs, own) if action == "read" else (own, theirs)
            target.load_state_dict(source.state_dict())
        for state, edges in zip(self.states, _leaving(cell), strict=True):
            getattr(state, action)(edges)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """As :class:`SearchCell`: images [N, C, H, W] in and out, in memory with the channels last."""
        return self._run(s0, s1, weights, None)

    def population(self, s0: Tensor, s1: Tensor, weights: Tensor, shared: tuple[bool, bool]) -> Tensor:
        """The same for P individuals with mixing weights [P, edges, candidates] → [P·N, nodes·C, H', W'].

        Args:
            s0, s1: images of every individual, one after the other; or those of all, where they are ``shared``.
        """
        return self._run(s0, s1, weights, shared)

    def _run(self, s0: Tensor, s1: Tensor, weights: Tensor, shared: tuple[bool, bool] | None) -> Tensor:
        s0, s1 = (s.contiguous(memory_format=torch.channels_last) for s in (s0, s1))
        inputs = (self.preprocess0(s0), self.preprocess1(s1))
        states: list[Any] = [x.permute(0, 2, 3, 1) for x in inputs] + [None] * self.space.nodes
        bypass: list[Any] = [None] * len(states)
        # A node is complete when the edges of all states before it have been added.
        rows = _rows_leaving(self.space.edges, self.space.nodes)
        for source, own in enumerate(rows):
            state: Any = self.states[source]
            nodes = [2 + self.space.edges[row][0] for row in own]
            x, common = states[source], bool(shared and source < 2 and shared[source])
            if self.partial_channels > 1:
                x, other = x.split([state.channels, x.shape[-1] - state.channels], dim=-1)
                other = state.around(other.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                for node, row in zip(nodes, own, strict=True):
                    bypass[node] = add(bypass[node], _scaled(other, weights[..., row, :].sum(dim=-1), common))
            into = [states[node] for node in nodes]
            given = shared is None and all(tensor is not None for tensor in into)
            if shared is None:
                sums = state(x, weights[own], into if given else ())
            else:
                sums = state.population(x, weights[:, own], common)
            for node, out in zip(nodes, sums, strict=True):
                states[node] = out if given else add(states[node], out)
            complete = source + 1
            if bypass[complete] is not None:
                both = torch.cat([states[complete], bypass[complete]], dim=-1)
                states[complete] = shuffle(both, self.partial_channels, dim=3)
        return torch.cat(states[2:], dim=-1).permute(0, 3, 1, 2)


def _scaled(x: Tensor, scale: Tensor, shared: bool) -> Tensor:
    """scale · x; with a scale for each of P individuals [P·N, …], of x [P·N, …] or, ``shared``, [N, …]."""
    if not scale.dim():
        return scale * x
    each = x.unflatten(0, (1 if shared else len(scale), -1))
    return (scale.view(-1, *[1] * x.dim()) * each).flatten(0, 1)


def _rows_leaving(edges: Sequence[tuple[int, int]], nodes: int) -> list[list[int]]:
    """The rows of the edges that leave each state which any edge leaves."""
    return [[row for row, edge in enumerate(edges) if edge[1] == source] for source in range(nodes + 1)]


def _leaving(cell: SearchCell) -> Iterable[list[MixedOp]]:
    edges: list[Any] = list(cell.edges)
    return [[edges[row] for row in rows] for rows in _rows_leaving(cell.space.edges, cell.space.nodes)]


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
        s0 = s1 = self.stem(x)
        shared = (True, True)
        for cell in cells:
            s0, s1 = s1, cell.population(s0, s1, mixing[cell.kind], shared)
            shared = (shared[1], False)
        return self._classify(s1).unflatten(0, (individuals, -1))

    def load_modular(self, net: ModularSupernet) -> None:
        """Take all weights, alphas, feedback, streams and statistics from a modular supernet of the same shape."""
        self._exchange(net, "read")

    def to_modular(self) -> ModularSupernet:
        """The same supernet with one module per candidate."""
        args, settings = self._build
        with torch.random.fork_rng(devices=[]):
            net = ModularSupernet(*args, **settings)
        net.to(next(self.stem.parameters())).train(self.training)
        self._exchange(net, "write")
        return net

    @torch.no_grad()
    def _exchange(self, net: ModularSupernet, action: str) -> None:
        for name in ("stem", "classifier", "architecture"):
            own, theirs = getattr(self, name), getattr(net, name)
            source, target = (theirs, own) if action == "read" else (own, theirs)
            target.load_state_dict(source.state_dict())
        cells: list[Any] = list(self.cells)
        for own, theirs in zip(cells, net.cells, strict=True):
            own.exchange(theirs, action)
