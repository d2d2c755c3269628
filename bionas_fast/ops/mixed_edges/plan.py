"""The plan of the edges from a state of a cell: their candidates, and the layout of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from bionas_fast.kernels.records import ReductionWeights, SeparablePlan, SeparableWeights, Stage, StageWeights, Terms

POOLS = 2  # maximum, then average


@dataclass(eq=False)
class Plan:
    """The candidates of the edges from a state.

    The mixing weights are those of the separable candidates, then those of the terms.

    Attributes:
        separable: the separable candidates, the number of edges and the stride.
        reductions: the number of factorized reductions.
        pools, identity: whether there are any.
        terms: the other candidates. Their maps are numbered in this order: the reductions, the two pools, the state.
        numbers: the plan as whole numbers, read by :meth:`read`.
        mixed: all candidates as one sum: the maps of the separable ones, then those of the terms.
        terms_of: the terms that read each map.
        pool_terms, pool_rows: the gradients of the two pools' maps as sums, over the gradients of the edges and then
            over the maps themselves; and the row of each summand's factor: one row per term, then one row per map.
    """

    separable: SeparablePlan
    reductions: int
    pools: bool
    identity: bool
    terms: Terms

    numbers: tuple[int, ...] = field(init=False)
    mixed: Terms = field(init=False)
    terms_of: list[list[int]] = field(init=False)
    pool_terms: Terms = field(init=False)
    pool_rows: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Computed here, because torch.compile cannot trace a lazy computation.
        kinds = (self.reductions, int(self.pools), int(self.identity), len(self.separable.edges))
        self.numbers = (*kinds, *self.separable.encode(), *self.terms.index, *self.terms.edges)
        first = len(self.separable.edges)
        of_terms = (first + number for number in self.terms.index)
        self.mixed = Terms(
            (*range(first), *of_terms), (*self.separable.edges, *self.terms.edges), self.separable.edge_count
        )
        self.terms_of = [[] for _ in range(self.reductions + POOLS * self.pools + self.identity)]
        for t, index in enumerate(self.terms.index):
            self.terms_of[index].append(t)
        self.pool_terms, self.pool_rows = self._pool_gradients()

    @classmethod
    def read(cls, numbers: Sequence[int]) -> Plan:
        """Build a plan from its ``numbers``."""
        reductions, pools, identity, branches, edge_count, twice, *rest = numbers
        edges, (stride, *rest) = tuple(rest[:branches]), rest[branches:]
        stage = Stage(tuple(rest[:branches]), tuple(rest[branches : 2 * branches]), stride)
        of_terms = rest[2 * branches :]
        count = len(of_terms) // 2
        terms = Terms(tuple(of_terms[:count]), tuple(of_terms[count:]), edge_count)
        return cls(SeparablePlan(stage, edges, edge_count, twice), reductions, bool(pools), bool(identity), terms)

    @property
    def edge_count(self) -> int:
        """The number of edges."""
        return self.separable.edge_count

    @property
    def pools_at(self) -> int:
        """The place of the pools among the stacks of the terms' maps."""
        return 1 if self.reductions else 0

    @property
    def stride(self) -> int:
        """1 or 2."""
        return self.separable.first.stride

    @property
    def branches(self) -> int:
        """The number of separable candidates."""
        return len(self.separable.edges)

    @property
    def empty(self) -> bool:
        """Whether there are no candidates."""
        return not (self.branches or self.terms.index)

    def _pool_gradients(self) -> tuple[Terms, tuple[int, ...]]:
        maps: list[int] = []
        rows: list[int] = []
        sums: list[int] = []
        for pool in range(POOLS if self.pools else 0):
            terms = self.terms_of[self.reductions + pool]
            maps += [*(self.terms.edges[term] for term in terms), self.edge_count + pool]
            rows += [*terms, len(self.terms.index) + self.reductions + pool]
            sums += [pool] * (len(terms) + 1)
        return Terms(tuple(maps), tuple(sums), POOLS), tuple(rows)


class Weights(NamedTuple):
    """The weights of all candidates, or in the backward pass their feedback."""

    separable: SeparableWeights
    reductions: ReductionWeights

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order in which they lie in the flat one."""
        return [*self.separable.tensors(), *self.reductions]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Weights:
        """Build the record from its :meth:`tensors`."""
        first, second, reductions = tensors[:2], tensors[2:4], tensors[4:]
        stages = SeparableWeights(StageWeights(*first), StageWeights(*second))
        return cls(stages, ReductionWeights(*reductions))

    @classmethod
    def split(cls, flat: Tensor, plan: Plan, channels: int) -> Weights:
        """Split one flat tensor into views, in the order of the records."""
        first, second = plan.separable.first, plan.separable.second
        square = (channels, channels)
        shapes = (
            (channels * first.taps,),
            (len(first.kernels), *square),
            (channels * second.taps,),
            (len(second.kernels), *square),
            (plan.reductions, channels - channels // 2, channels),
            (plan.reductions, channels // 2, channels),
        )
        parts = flat.split([math.prod(shape) for shape in shapes])
        return cls.of([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])
