"""All edges that leave one state of a cell, made of their mixed ops and run as one.

All of them read the same tensor. So their candidates run as one op (``ops.mixed_edges``); whatever that op does not
know runs as the module it is. Activations are [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.ops.mixed_edges.autograd import Statistics, mixed_edges
from bionas_fast.ops.mixed_edges.candidate_maps import candidate_maps
from bionas_fast.ops.mixed_edges.plan import POOLS, Plan, Separable, Term
from bionas_fast.space.operations import FactorizedReduce, SeparableStage, Skip, Zero
from bionas_fast.supernet.modular import MixedOp, add
from bionas_fast.supernet.weight_bank import Bank

Column = tuple[int, int]  # edge, candidate


class Normalisations(nn.Module):
    """The running statistics of K batch normalisations without affine parameters, [K, C] each.

    Args:
        layers: for each the modules that it stands for: one, or the equal ones of several edges, or none.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(self, layers: Sequence[Sequence[Any]], channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(layers), channels))
        self.register_buffer("var", torch.ones(len(layers), channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.read(layers)

    def read(self, layers: Sequence[Sequence[Any]]) -> None:
        for k, copies in enumerate(layers):
            for layer in copies[:1]:
                self.mean[k], self.var[k] = layer.running_mean, layer.running_var
                self.batches.copy_(layer.num_batches_tracked)

    def write(self, layers: Sequence[Sequence[Any]]) -> None:
        for k, copies in enumerate(layers):
            for layer in copies:
                layer.running_mean.copy_(self.mean[k])
                layer.running_var.copy_(self.var[k])
                layer.num_batches_tracked.copy_(self.batches)


class StackedEdges(nn.Module):
    """All edges that leave one state of a cell, made of their mixed ops."""

    incidence: Tensor
    identity_incidence: Tensor
    identity_columns: Tensor

    def __init__(self, edges: Sequence[MixedOp], stride: int) -> None:
        super().__init__()
        self.count, self.channels = len(edges), edges[0].channels
        self.bypass = edges[0].bypass
        found = _Sorted(edges, stride)
        self.plan = found.plan(self.count)
        self.bank = Bank(found.weights)
        self.normalisations = Normalisations(found.normalisations, self.channels)
        self.identities = Bank(found.identities)
        self.others = nn.ModuleList(module for _, module in found.others)
        self.other_columns = [column for column, _ in found.others]
        candidates = len(list(edges[0].candidates))
        incidence = torch.zeros(len(found.columns), self.count * candidates)
        for t, columns in enumerate(found.columns):
            for e, k in columns:
                incidence[t, e * candidates + k] = 1
        self.register_buffer("incidence", incidence, persistent=False)
        identities = torch.tensor([column for column, _ in found.identity], dtype=torch.int64).view(-1, 2)
        own = (torch.arange(self.count)[:, None] == identities[:, 0]).to(incidence.dtype)
        self.register_buffer("identity_incidence", own, persistent=False)
        self.register_buffer("identity_columns", identities[:, 0] * candidates + identities[:, 1], persistent=False)

    def read(self, edges: Sequence[MixedOp]) -> None:
        """Take everything from mixed ops like those this was made of."""
        self._exchange(edges, "read")

    def write(self, edges: Sequence[MixedOp]) -> None:
        """Give everything back to such mixed ops."""
        self._exchange(edges, "write")

    def _exchange(self, edges: Sequence[MixedOp], action: str) -> None:
        found = _Sorted(edges, self.plan.stride)
        getattr(self.bank, action)(found.weights)
        getattr(self.identities, action)(found.identities)
        getattr(self.normalisations, action)(found.normalisations)
        for own, (_, theirs) in zip(self.others, found.others, strict=True):
            source, target = (theirs, own) if action == "read" else (own, theirs)
            target.load_state_dict(source.state_dict())

    def forward(self, x: Tensor, weights: Tensor, into: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The state [N, H, W, C] and mixing weights [E, candidates] → the sum of every edge, E × [N, H', W', C].

        Args:
            into: for each edge the tensor that its sum is added to, or None.
        """
        total: list[Any] = list(into)
        image = x.permute(0, 3, 1, 2).contiguous() if self.others else x
        for (e, k), module in zip(self.other_columns, self.others, strict=True):
            total[e] = add(total[e], weights[e, k] * module(image).permute(0, 2, 3, 1))
        if self.plan.empty:
            return tuple(total)
        given = all(tensor is not None for tensor in total)
        make, make_identities = self.bank.prepare(), self.identities.prepare()

        def make_feedback() -> tuple[Tensor, Tensor | None]:
            return make(), self._identity_feedback(weights.detach(), make_identities)

        normalisations = self.normalisations
        sums = mixed_edges(
            x,
            self.incidence.to(weights.dtype) @ weights.flatten(),
            total if given else (),
            self.bank.weight,
            self.plan,
            Statistics(normalisations.mean, normalisations.var),
            make_feedback,
            self.training,
        )
        if self.training:
            normalisations.batches.add_(1)
        if given:
            return sums
        return tuple(own if other is None else own + other for own, other in zip(sums, total, strict=True))

    def population(self, x: Tensor, weights: Tensor, shared: bool) -> tuple[Tensor, ...]:
        """The sums of every edge for P individuals with mixing weights [P, E, candidates], E × [P·N, H', W', C].

        Args:
            x: the state of each individual, one after the other, [P·N, H, W, C]; or ``shared``, [N, H, W, C].
        """
        if not shared:
            each = [self(own, w, [None] * self.count) for own, w in zip(x.chunk(len(weights)), weights, strict=True)]
            return tuple(torch.cat(sums) for sums in zip(*each, strict=True))
        # What does not depend on the individual is computed once, and mixing it is a matrix product.
        columns = [*self.other_columns]
        maps = [module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[None] for module in self.others]
        statistics = Statistics(self.normalisations.mean, self.normalisations.var)
        mixing = torch.stack([weights[:, e, k] for e, k in columns], dim=1) if columns else weights[:, 0, :0]
        edges = [e for e, _ in columns]
        if not self.plan.empty:
            maps.append(candidate_maps(x, self.bank.weight, self.plan, statistics))
            mixing = torch.cat([mixing, weights.flatten(1) @ self.incidence.to(weights.dtype).T], dim=1)
            edges += [*self.plan.separable.edges, *self.plan.sums]
        stack = torch.cat(maps)
        sums = []
        for e in range(self.count):
            own = [i for i, edge in enumerate(edges) if edge == e]
            total = mixing[:, own].to(stack.dtype) @ stack[own].flatten(1)
            sums.append(total.view(-1, *stack.shape[2:]))
        return tuple(sums)

    def _identity_feedback(self, weights: Tensor, make: Callable[[], Tensor]) -> Tensor | None:
        """The sum of what the identities of each edge send down, [E, C]."""
        if not self.plan.identity:
            return None
        b = make()
        factors = self.identity_incidence * weights.flatten()[self.identity_columns]
        return factors.to(b.dtype) @ b.view(factors.shape[1], -1)


class _Sorted:
    """The candidates of several edges of one stride, sorted by how they run; each with its column."""

    def __init__(self, edges: Sequence[MixedOp], stride: int) -> None:
        self.stride = stride
        self.twice: list[tuple[Column, list[Any]]] = []
        self.once: list[tuple[Column, list[Any]]] = []
        self.reductions: list[tuple[Column, Any]] = []
        self.pools: list[list[tuple[Column, Any]]] = [[] for _ in range(POOLS)]
        self.identity: list[tuple[Column, Any]] = []
        self.others: list[tuple[Column, nn.Module]] = []
        for e, edge in enumerate(edges):
            for k, module in enumerate(edge.candidates):
                self._sort((e, k), module)

    def _sort(self, column: Column, module: nn.Module) -> None:
        stages = _stages(module, self.stride)
        if stages:
            (self.twice if len(stages) == 2 else self.once).append((column, stages))
        elif self.stride == 2 and isinstance(module, FactorizedReduce) and _batches(module.conv_1, module.bn):
            self.reductions.append((column, module))
        elif self.stride == 1 and isinstance(module, Skip) and module.rule != "dfa":
            self.identity.append((column, module))
        elif (pool := _pool(module, self.stride)) is not None:
            self.pools[pool].append((column, module))
        elif not isinstance(module, Zero):
            self.others.append((column, module))

    @property
    def separable(self) -> list[tuple[Column, list[Any]]]:
        return [*self.twice, *self.once]

    @property
    def weights(self) -> list[Any]:
        """The layers with weights, in the order of :class:`bionas_fast.ops.mixed_edges.plan.Weights`."""
        first = [stages[0] for _, stages in self.separable]
        second = [stages[1] for _, stages in self.twice]
        separable = [stage[i] for group in (first, second) for i in (1, 2) for stage in group]
        modules = [module for _, module in self.reductions]
        reduce2 = [module.conv_2 for module in modules if module.conv_2 is not None]
        return [*separable, *(module.conv_1 for module in modules), *reduce2]

    @property
    def identities(self) -> list[Any]:
        return [module for _, module in self.identity]

    @property
    def normalisations(self) -> list[list[Any]]:
        """The modules behind each row of the running statistics."""
        rows = [[stages[0][3]] for _, stages in self.twice]
        rows += [[stages[-1][3]] for _, stages in self.separable]
        rows += [[module.bn] for _, module in self.reductions]
        if any(self.pools):
            rows += [[module[1] for _, module in pool] for pool in self.pools]
        return rows

    def plan(self, edges: int) -> Plan:
        """What runs; and, as ``columns``, which columns of the mixing weights make each of its own."""
        maps: list[list[Column]] = [[column] for column, _ in self.reductions]
        if any(self.pools):
            maps += [[column for column, _ in pool] for pool in self.pools]
        if self.identity:
            maps.append([column for column, _ in self.identity])
        terms: dict[Term, list[Column]] = {}
        for k, columns in enumerate(maps):
            for column in columns:
                terms.setdefault(Term(k, column[0]), []).append(column)
        order = sorted(terms, key=lambda term: (term.edge, term.map))
        self.columns = [*([column] for column, _ in self.separable), *(terms[term] for term in order)]
        separable = Separable(
            kernels=tuple(stages[0][1].kernel_size[0] for _, stages in self.separable),
            dilations=tuple(stages[0][1].dilation[0] for _, stages in self.separable),
            edges=tuple(column[0] for column, _ in self.separable),
            twice=len(self.twice),
        )
        return Plan(
            edges=edges,
            stride=self.stride,
            separable=separable,
            reductions=len(self.reductions),
            pools=any(self.pools),
            identity=bool(self.identity),
            terms=tuple(order),
        )


def _stages(module: nn.Module, stride: int) -> list[Any]:
    """The stages of a separable candidate that the batched op can run, the first with this stride; or none."""
    stages: list[Any] = (
        [module] if isinstance(module, SeparableStage) else list(module) if type(module) is nn.Sequential else []
    )
    fits = stages and len(stages) <= 2 and all(isinstance(stage, SeparableStage) for stage in stages)
    fits = fits and all(s[1].kernel_size[0] in (3, 5) and _batches(s[1], s[3]) for s in stages)
    fits = fits and all(s[1].stride == (own, own) for s, own in zip(stages, (stride, 1), strict=False))
    if len(stages) == 2 and fits:
        fits = stages[0][1].kernel_size == stages[1][1].kernel_size and stages[1][1].dilation == (1, 1)
    return stages if fits else []


def _pool(module: nn.Module, stride: int) -> int | None:
    """Which of the two pools of a supernet with this stride this is, if any."""
    if type(module) is not nn.Sequential or len(module) != 2:
        return None
    pool, norm = module
    kinds = (nn.MaxPool2d, nn.AvgPool2d)
    if type(pool) not in kinds or type(norm) is not nn.BatchNorm2d or norm.affine:
        return None
    shape = pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode
    if shape != (3, stride, 1, False) or getattr(pool, "dilation", 1) != 1:
        return None
    return kinds.index(type(pool)) if not getattr(pool, "count_include_pad", False) else None


def _batches(layer: Any, norm: nn.BatchNorm2d) -> bool:
    return not norm.affine and layer.rule != "dfa"
