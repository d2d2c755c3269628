"""What leaves a state of a cell: which candidates of which edges, and where their weights lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

POOLS = 2  # the maximum, then the average


class Separable(NamedTuple):
    """The separable candidates, first those of two stages and then those of one.

    Attributes:
        kernels, dilations: of the first stage.
        edges: the edge of each.
        twice: how many have a second stage (same kernel, stride 1, dilation 1).
    """

    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    edges: tuple[int, ...]
    twice: int


class Term(NamedTuple):
    """A map in the sum of an edge."""

    map: int
    edge: int


@dataclass(eq=False)
class Plan:
    """What leaves a state.

    Every separable candidate has a mixing weight, and so has every term after them.

    Attributes:
        edges: how many there are.
        stride: 1 or 2.
        separable: the separable candidates.
        reductions: how many factorized reductions there are.
        pools, identity: whether there are any.
        terms: what is added up beside the separable candidates, ascending by edge. Maps are counted through: the
            reductions, the two pools, the state itself.
        taps: how many taps the depthwise kernels of the first stages have, and those of the second ones.
        index, sums: the map and the edge of each term.
        terms_of: the terms that read each map.
        pool_gradients: the gradients of the two pools' maps, as sums over the gradients of the edges and then the maps
            themselves: of each summand the map, the row of its factors, which are one for each term and then one for
            each map, and the pool.
    """

    edges: int
    stride: int
    separable: Separable
    reductions: int
    pools: bool
    identity: bool
    terms: tuple[Term, ...]

    taps: tuple[int, int] = field(init=False)
    index: list[int] = field(init=False)
    sums: list[int] = field(init=False)
    terms_of: list[list[int]] = field(init=False)
    pool_gradients: tuple[list[int], np.ndarray, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        # Now and not when first asked for, which torch.compile could not trace.
        kernels, _, _, twice = self.separable
        self.taps = (sum(k * k for k in kernels), sum(k * k for k in kernels[:twice]))
        self.index = [term.map for term in self.terms]
        self.sums = [term.edge for term in self.terms]
        self.terms_of = [[] for _ in range(self.reductions + POOLS * self.pools + self.identity)]
        for t, term in enumerate(self.terms):
            self.terms_of[term.map].append(t)
        self.pool_gradients = self._pool_gradients()

    @property
    def empty(self) -> bool:
        """Whether nothing leaves the state."""
        return not (self.separable.kernels or self.terms)

    def _pool_gradients(self) -> tuple[list[int], np.ndarray, list[int]]:
        maps, rows, sums = [], [], []
        for pool in range(POOLS if self.pools else 0):
            terms = self.terms_of[self.reductions + pool]
            maps += [*(self.terms[term].edge for term in terms), self.edges + pool]
            rows += [*terms, len(self.terms) + self.reductions + pool]
            sums += [pool] * (len(terms) + 1)
        return maps, np.array(rows, dtype=int), sums


class Weights(NamedTuple):
    """The weights of all candidates, or the feedback that stands for them in the backward pass.

    Attributes:
        depthwise1, pointwise1, depthwise2, pointwise2: of the two stages, laid out as ``kernels.separable_stage`` says.
        reduce1, reduce2: of the reductions, laid out as ``kernels.factorized_reduce`` says.
    """

    depthwise1: Tensor
    pointwise1: Tensor
    depthwise2: Tensor
    pointwise2: Tensor
    reduce1: Tensor
    reduce2: Tensor

    @classmethod
    def split(cls, flat: Tensor, plan: Plan, channels: int) -> Weights:
        """Views of one tensor that holds them all, in this order."""
        first, second = plan.taps
        square = (channels, channels)
        shapes = (
            (channels * first,),
            (len(plan.separable.kernels), *square),
            (channels * second,),
            (plan.separable.twice, *square),
            (plan.reductions, channels - channels // 2, channels),
            (plan.reductions, channels // 2, channels),
        )
        parts = flat.split([math.prod(shape) for shape in shapes])
        return cls(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))

    @property
    def separable(self) -> list[Tensor]:
        """Those of the two stages."""
        return list(self[:4])
