"""The candidates of several edges, sorted by their implementation in the stacked supernet, and the plan of its op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from bionas_fast import rules
from bionas_fast.kernels.records import SeparablePlan, Stage, Terms
from bionas_fast.nn import FeedbackLayer
from bionas_fast.nn.batch_norm import SyncedBatchNorm2d
from bionas_fast.ops.mixed_edges.plan import POOLS, Plan
from bionas_fast.space.operations import FactorizedReduce, SeparableStage, Skip, Zero
from bionas_fast.supernet.mixed_op import MixedOp

Column = tuple[int, int]  # edge, candidate


@dataclass(frozen=True)
class Pool:
    """A pool and the batch normalisation after it."""

    column: Column
    norm: nn.BatchNorm2d


@dataclass
class SortedCandidates:
    """The candidates of several edges, each with its column.

    Attributes:
        stride: the stride of all edges.
        edge_count: the number of edges.
        twice: candidates with two separable stages.
        once: candidates with one separable stage.
        reductions: factorized reductions.
        pools: the maximum pools, then the average pools.
        skips: identities, each with a rule.
        others: candidates that run as modules.
    """

    stride: int
    edge_count: int
    twice: list[tuple[Column, list[SeparableStage]]] = field(default_factory=list)
    once: list[tuple[Column, list[SeparableStage]]] = field(default_factory=list)
    reductions: list[tuple[Column, FactorizedReduce]] = field(default_factory=list)
    pools: list[list[Pool]] = field(default_factory=lambda: [[] for _ in range(POOLS)])
    skips: list[tuple[Column, Skip]] = field(default_factory=list)
    others: list[tuple[Column, nn.Module]] = field(default_factory=list)

    @property
    def firsts(self) -> list[tuple[Column, SeparableStage]]:
        """The first stages of all separable candidates, in the order of the op."""
        return [(column, stages[0]) for column, stages in (*self.twice, *self.once)]

    @property
    def lasts(self) -> list[SeparableStage]:
        """The last stages of all separable candidates."""
        return [stages[-1] for _, stages in (*self.twice, *self.once)]

    @property
    def weights(self) -> list[FeedbackLayer]:
        """The layers with weights, in the order of :class:`bionas_fast.ops.mixed_edges.plan.Weights`."""
        first = [stage for _, stage in self.firsts]
        second = [stages[1] for _, stages in self.twice]
        layers: list[FeedbackLayer] = []
        for group in (first, second):
            layers += [stage.depthwise for stage in group]
            layers += [stage.pointwise for stage in group]
        layers += [module.conv1 for _, module in self.reductions]
        layers += [module.conv2 for _, module in self.reductions if module.conv2 is not None]
        return layers

    @property
    def identities(self) -> list[FeedbackLayer]:
        """The layers of the identities."""
        return [module for _, module in self.skips]

    @property
    def normalisations(self) -> list[list[nn.BatchNorm2d]]:
        """The modules that share each row of the running statistics."""
        rows = [[stages[0].norm] for _, stages in self.twice]
        rows += [[stage.norm] for stage in self.lasts]
        rows += [[module.bn] for _, module in self.reductions]
        if any(self.pools):
            rows += [[pool.norm for pool in kind] for kind in self.pools]
        return rows


def sort_candidates(edges: Sequence[MixedOp], stride: int) -> SortedCandidates:
    """Sort the candidates of edges with the same stride."""
    candidates = SortedCandidates(stride, len(edges))
    for e, edge in enumerate(edges):
        for k, module in enumerate(edge.candidates):
            _sort(candidates, (e, k), module)
    return candidates


def make_plan(candidates: SortedCandidates) -> tuple[Plan, list[list[Column]]]:
    """Build the plan of the op.

    Returns:
        The plan, and for each of its mixing weights the (edge, candidate) pairs that it sums.
    """
    maps: list[list[Column]] = [[column] for column, _ in candidates.reductions]
    if any(candidates.pools):
        maps += [[pool.column for pool in kind] for kind in candidates.pools]
    if candidates.skips:
        maps.append([column for column, _ in candidates.skips])
    summed: dict[tuple[int, int], list[Column]] = {}
    for index, columns in enumerate(maps):
        for edge, candidate in columns:
            summed.setdefault((edge, index), []).append((edge, candidate))
    order = sorted(summed)
    firsts = candidates.firsts
    plan = Plan(
        separable=SeparablePlan(
            first=Stage(
                kernels=tuple(stage.depthwise.kernel_size[0] for _, stage in firsts),
                dilations=tuple(stage.depthwise.dilation[0] for _, stage in firsts),
                stride=candidates.stride,
            ),
            edges=tuple(edge for (edge, _), _ in firsts),
            edge_count=candidates.edge_count,
            twice=len(candidates.twice),
        ),
        reductions=len(candidates.reductions),
        pools=any(candidates.pools),
        identity=bool(candidates.skips),
        terms=Terms(tuple(index for _, index in order), tuple(edge for edge, _ in order), candidates.edge_count),
    )
    return plan, [*([column] for column, _ in firsts), *(summed[term] for term in order)]


def _sort(candidates: SortedCandidates, column: Column, module: nn.Module) -> None:
    stages = _stages(module, candidates.stride)
    if len(stages) == 2:
        candidates.twice.append((column, stages))
    elif stages:
        candidates.once.append((column, stages))
    elif candidates.stride == 2 and isinstance(module, FactorizedReduce) and _fits(module.conv1, module.bn):
        candidates.reductions.append((column, module))
    elif candidates.stride == 1 and isinstance(module, Skip) and not _is_direct(module):
        candidates.skips.append((column, module))
    elif (pool := _pool(module, candidates.stride)) is not None:
        kind, norm = pool
        candidates.pools[kind].append(Pool(column, norm))
    elif not isinstance(module, Zero):
        candidates.others.append((column, module))


def _stages(module: nn.Module, stride: int) -> list[SeparableStage]:
    """Return the one or two stages of a separable candidate, or none if the op does not support them."""
    parts: list[nn.Module] = [*module] if type(module) is nn.Sequential else [module]
    stages = [part for part in parts if isinstance(part, SeparableStage)]
    if len(stages) != len(parts) or len(stages) not in (1, 2):
        return []
    first, *second = stages
    if not (_runs(first, stride) and all(_runs(stage, 1) for stage in second)):
        return []
    size = first.depthwise.kernel_size
    if any(stage.depthwise.kernel_size != size or stage.depthwise.dilation != (1, 1) for stage in second):
        return []
    return stages


def _runs(stage: SeparableStage, stride: int) -> bool:
    layer = stage.depthwise
    return layer.kernel_size[0] in (3, 5) and layer.stride == (stride, stride) and _fits(layer, stage.norm)


def _pool(module: nn.Module, stride: int) -> tuple[int, nn.BatchNorm2d] | None:
    """Return the index of a supported pool among ``POOLS`` and its normalisation, or None."""
    if type(module) is not nn.Sequential or len(module) != 2:
        return None
    pool, norm = module
    if not isinstance(norm, nn.BatchNorm2d) or type(norm) not in (nn.BatchNorm2d, SyncedBatchNorm2d) or norm.affine:
        return None
    if type(pool) is nn.MaxPool2d:
        kind, plain = 0, pool.dilation == 1
    elif type(pool) is nn.AvgPool2d:
        kind, plain = 1, not pool.count_include_pad
    else:
        return None
    shape = pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode
    return (kind, norm) if plain and shape == (3, stride, 1, False) else None


def _fits(layer: FeedbackLayer, norm: nn.BatchNorm2d) -> bool:
    return not norm.affine and not _is_direct(layer)


def _is_direct(layer: FeedbackLayer) -> bool:
    return rules.get(layer.rule).mode == "direct"
