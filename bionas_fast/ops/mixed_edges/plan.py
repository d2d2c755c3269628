"""The plan of the edges that leave a state of a cell: which candidates they have, and where their weights lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bionas_fast.kernels.records import ReductionWeights, SeparablePlan, SeparableWeights, StageWeights, Terms

POOLS = 2  # the maximum, then the average


@dataclass(eq=False)
class Plan:
    """The candidates of the edges that leave a state.

    Every separable candidate has a mixing weight, and so has every term after them.

    Attributes:
        separable: the separable candidates, the number of edges and the stride.
        reductions: the number of factorized reductions.
        pools, identity: whether there are any.
        terms: the other candidates. Their maps are numbered in order: the reductions, the two pools, the state itself.
        terms_of: the terms that read each map.
        pool_terms, pool_rows: the gradients of the two pools' maps as sums, over the gradients of the edges and then
            over the maps themselves; and the row of each summand's factor, which are one for each term and then one
            for each map.
    """

    separable: SeparablePlan
    reductions: int
    pools: bool
    identity: bool
    terms: Terms

    terms_of: list[list[int]] = field(init=False)
    pool_terms: Terms = field(init=False)
    pool_rows: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        # Now and not when first asked for, which torch.compile could not trace.
        self.terms_of = [[] for _ in range(self.reductions + POOLS * self.pools + self.identity)]
        for t, index in enumerate(self.terms.index):
            self.terms_of[index].append(t)
        self.pool_terms, self.pool_rows = self._pool_gradients()

    @property
    def edge_count(self) -> int:
        """The number of edges."""
        return self.separable.edge_count

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
        """Whether nothing leaves the state."""
        return not (self.branches or self.terms.index)

    def _pool_gradients(self) -> tuple[Terms, np.ndarray]:
        maps: list[int] = []
        rows: list[int] = []
        sums: list[int] = []
        for pool in range(POOLS if self.pools else 0):
            terms = self.terms_of[self.reductions + pool]
            maps += [*(self.terms.edges[term] for term in terms), self.edge_count + pool]
            rows += [*terms, len(self.terms.index) + self.reductions + pool]
            sums += [pool] * (len(terms) + 1)
        return Terms(tuple(maps), tuple(sums), POOLS), np.array(rows, dtype=int)


class Weights(NamedTuple):
    """The weights of all candidates, or the feedback in their place in the backward pass."""

    separable: SeparableWeights
    reductions: ReductionWeights

    @classmethod
    def split(cls, flat: Tensor, plan: Plan, channels: int) -> Weights:
        """Views of one tensor that holds all of them, in the order of the records."""
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
        depthwise1, pointwise1, depthwise2, pointwise2, reduce1, reduce2 = (
            part.view(shape) for part, shape in zip(parts, shapes, strict=True)
        )
        stages = SeparableWeights(StageWeights(depthwise1, pointwise1), StageWeights(depthwise2, pointwise2))
        return cls(stages, ReductionWeights(reduce1, reduce2))
