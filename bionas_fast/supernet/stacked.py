"""The supernet with its candidates batched: the same function as the modular one, many times faster.

All edges that leave a state read the same tensor. So their separable candidates run as one op
(``ops.separable_edges``), their weightless ones once for all of them, their identities as one scaled sum; whatever else
there is runs as the module it is. Activations are [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.nn import FeedbackLayer
from bionas_fast.ops.separable_edges import Branches, Statistics, separable_edges
from bionas_fast.ops.skip_sum import skip_sum
from bionas_fast.space import Candidate, Space
from bionas_fast.space.cells import PreprocessedCell
from bionas_fast.space.operations import SeparableStage, Skip, Zero
from bionas_fast.supernet.bank import Bank
from bionas_fast.supernet.modular import MixedOp, ModularSupernet, SearchCell


class Normalisations(nn.Module):
    """The running statistics of many batch normalisations without affine parameters, [K, C] each."""

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(self, layers: Sequence[nn.BatchNorm2d], channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(layers), channels))
        self.register_buffer("var", torch.ones(len(layers), channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.read(layers)

    def read(self, layers: Sequence[Any]) -> None:
        for k, layer in enumerate(layers):
            self.mean[k], self.var[k] = layer.running_mean, layer.running_var
            self.batches.copy_(layer.num_batches_tracked)

    def write(self, layers: Sequence[Any]) -> None:
        for k, layer in enumerate(layers):
            layer.running_mean.copy_(self.mean[k])
            layer.running_var.copy_(self.var[k])
            layer.num_batches_tracked.copy_(self.batches)


class StateEdges(nn.Module):
    """All edges that leave one state of a cell, made of their mixed ops."""

    def __init__(self, edges: Sequence[MixedOp], channels: int, stride: int) -> None:
        super().__init__()
        self.count, self.channels, self.stride = len(edges), channels, stride
        found = _Sorted(edges)
        self.columns = found.columns
        self.branches = Branches(
            kernels=tuple(stages[0][1].kernel_size[0] for stages in found.stages),
            dilations=tuple(stages[0][1].dilation[0] for stages in found.stages),
            edges=tuple(e for e, _ in found.columns.separable),
            twice=len(found.second),
            stride=stride,
            count=self.count,
        )
        self.banks = nn.ModuleList(Bank(layers) for layers in found.weights) if found.stages else None
        self.norms = nn.ModuleList(Normalisations(layers, channels) for layers in found.norms)
        self.skips = Bank(found.skips) if found.skips else None
        self.shared = nn.ModuleList(found.shared)
        self.others = nn.ModuleList(found.others)

    def read(self, edges: Sequence[MixedOp]) -> None:
        """Take everything from mixed ops like those this was made of."""
        self._exchange(edges, "read")

    def write(self, edges: Sequence[MixedOp]) -> None:
        """Give everything back to such mixed ops."""
        self._exchange(edges, "write")

    def _exchange(self, edges: Sequence[MixedOp], action: str) -> None:
        found = _Sorted(edges)
        for bank, layers in zip(self.banks or (), found.weights, strict=False):
            getattr(bank, action)(layers)
        for norm, layers in zip(self.norms, found.norms, strict=True):
            getattr(norm, action)(layers)
        if self.skips is not None:
            getattr(self.skips, action)(found.skips)
        for own, theirs in (*zip(self.shared, found.shared, strict=True), *zip(self.others, found.others, strict=True)):
            source, target = (theirs, own) if action == "read" else (own, theirs)
            target.load_state_dict(source.state_dict())
        if action == "write":
            for module, copies in zip(self.shared, found.copies, strict=True):
                for copy in copies:
                    copy.load_state_dict(module.state_dict())

    def forward(self, x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """The state [N, H, W, C] and mixing weights [E, candidates] → the sum of every edge, E × [N, H', W', C]."""
        sums = []
        if self.banks is not None:
            banks: list[Any] = list(self.banks)
            make = [bank.prepare() for bank in banks]
            depthwise1, pointwise1, depthwise2, pointwise2 = (bank.weight for bank in banks)
            norms: list[Any] = list(self.norms)
            first, second = norms
            square = (-1, self.channels, self.channels)
            sums.append(
                separable_edges(
                    x,
                    weights[self.columns.index("separable")],
                    (depthwise1, pointwise1.view(square)),
                    (depthwise2, pointwise2.view(square)),
                    self.branches,
                    Statistics(first.mean, first.var, second.mean, second.var),
                    lambda: (make[0](), make[1]().view(square), make[2](), make[3]().view(square)),
                    self.training,
                )
            )
            if self.training:
                first.batches += 1
                second.batches += 1
        if self.skips is not None:
            p = weights[self.columns.index("skips")].view(self.count, -1)
            sums.append(skip_sum(x, p, self.skips.prepare()))
        image = x.permute(0, 3, 1, 2).contiguous()  # as the modules have it in the modular network
        if self.shared:
            maps = torch.stack([module(image).permute(0, 2, 3, 1) for module in self.shared])
            p = weights[self.columns.index("shared")].view(self.count, -1)
            sums.append(torch.tensordot(p.to(maps.dtype), maps, dims=1))
        total: list[Any] = list(sum(sums[1:], sums[0]).unbind()) if sums else [None] * self.count
        for (e, k), module in zip(self.columns.others, self.others, strict=True):
            out = weights[e, k] * module(image).permute(0, 2, 3, 1)
            total[e] = out if total[e] is None else total[e] + out
        return tuple(total)


class _Columns:
    """Where each group of candidates stands in the mixing weights: (edge, candidate) pairs."""

    def __init__(self) -> None:
        self.separable: list[tuple[int, int]] = []
        self.skips: list[tuple[int, int]] = []
        self.shared: list[tuple[int, int]] = []
        self.others: list[tuple[int, int]] = []

    def index(self, group: str) -> tuple[list[int], list[int]]:
        pairs = getattr(self, group)
        return [e for e, _ in pairs], [k for _, k in pairs]


class _Sorted:
    """The candidates of several edges, sorted by how they run."""

    def __init__(self, edges: Sequence[MixedOp]) -> None:
        self.columns = _Columns()
        self.shared: list[nn.Module] = []
        self.copies: list[list[nn.Module]] = []
        self.skips: list[FeedbackLayer] = []
        self.others: list[nn.Module] = []
        twice: list[tuple[tuple[int, int], list[Any]]] = []
        once: list[tuple[tuple[int, int], list[Any]]] = []
        for e, edge in enumerate(edges):
            shared = 0
            for k, module in enumerate(edge.candidates):
                stages = _stages(module)
                if isinstance(module, Zero):
                    continue
                if stages:
                    (twice if len(stages) == 2 else once).append(((e, k), stages))
                elif isinstance(module, Skip):
                    self.columns.skips.append((e, k))
                    self.skips.append(module)
                elif not list(module.parameters()):
                    self.columns.shared.append((e, k))
                    if e == 0:
                        self.shared.append(module)
                        self.copies.append([])
                    self.copies[shared].append(module)
                    shared += 1
                else:
                    self.columns.others.append((e, k))
                    self.others.append(module)
        self.columns.separable = [pair for pair, _ in (*twice, *once)]
        self.stages = [stages for _, stages in (*twice, *once)]
        self.second = [stages[1] for _, stages in twice]
        first = [stages[0] for stages in self.stages]
        self.weights = [[stage[i] for stage in group] for group in (first, self.second) for i in (1, 2)]
        self.norms = [[stage[3] for stage in group] for group in (first, self.second)]


def _stages(module: nn.Module) -> list[Any]:
    """The stages of a separable candidate that the batched op can run, or none."""
    stages: list[Any] = (
        [module] if isinstance(module, SeparableStage) else list(module) if type(module) is nn.Sequential else []
    )
    fits = stages and len(stages) <= 2 and all(isinstance(s, SeparableStage) and _fits(s) for s in stages)
    if len(stages) == 2 and fits:
        fits = stages[0][1].kernel_size == stages[1][1].kernel_size and stages[1][1].dilation == (1, 1)
    return stages if fits else []


def _fits(stage: Any) -> bool:
    return stage[1].kernel_size[0] in (3, 5) and not stage[3].affine and stage[1].rule != "dfa"


class StackedCell(PreprocessedCell):
    """The batched form of a :class:`SearchCell`."""

    def __init__(self, cell: SearchCell, channels: int) -> None:
        nn.Module.__init__(self)
        self.kind, self.space, self.out_channels = cell.kind, cell.space, cell.out_channels
        self.preprocess0, self.preprocess1 = cell.preprocess0, cell.preprocess1
        self.states = nn.ModuleList(
            StateEdges(edges, channels, 2 if self.kind == "reduce" and source < 2 else 1)
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
        """As :class:`SearchCell`: images [N, C, H, W] in and out."""
        rows = _rows_leaving(self.space.edges, self.space.nodes)
        inputs = (self.preprocess0(s0), self.preprocess1(s1))
        states: list[Any] = [x.permute(0, 2, 3, 1) for x in inputs] + [None] * self.space.nodes
        # A node is complete when the edges of all states before it have been added.
        for source, (state, own) in enumerate(zip(self.states, rows, strict=True)):
            for row, out in zip(own, state(states[source], weights[own]), strict=True):
                node = 2 + self.space.edges[row][0]
                states[node] = out if states[node] is None else states[node] + out
        return torch.cat(states[2:], dim=-1).permute(0, 3, 1, 2).contiguous()


def _rows_leaving(edges: Sequence[tuple[int, int]], nodes: int) -> list[list[int]]:
    """The rows of the edges that leave each state which any edge leaves."""
    return [[row for row, edge in enumerate(edges) if edge[1] == source] for source in range(nodes + 1)]


def _leaving(cell: SearchCell) -> Iterable[list[MixedOp]]:
    edges: list[Any] = list(cell.edges)
    return [[edges[row] for row in rows] for rows in _rows_leaving(cell.space.edges, cell.space.nodes)]


class StackedSupernet(ModularSupernet):
    """The batched supernet; see :func:`bionas_fast.build_supernet`. The same seed gives the modular one's weights."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._build = (args, settings)

    @staticmethod
    def _make_cell(space: Space, candidates: tuple[Candidate, ...], *shape: Any) -> PreprocessedCell:
        return StackedCell(SearchCell(space, candidates, *shape), channels=shape[1])

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
        for name in ("stem", "classifier", "alphas"):
            own, theirs = getattr(self, name), getattr(net, name)
            source, target = (theirs, own) if action == "read" else (own, theirs)
            target.load_state_dict(source.state_dict())
        cells: list[Any] = list(self.cells)
        for own, theirs in zip(cells, net.cells, strict=True):
            own.exchange(theirs, action)
