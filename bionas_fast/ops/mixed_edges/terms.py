"""The candidates that are not separable: factorized reductions, pools, identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bionas_fast.kernels.records import Prologue, ReductionWeights, Sums, TermGradients
from bionas_fast.kernels.tables import table
from bionas_fast.ops.mixed_edges.parts import CandidateParts
from bionas_fast.ops.mixed_edges.plan import POOLS, Plan


def term_maps(
    state: Tensor, weights: ReductionWeights, plan: Plan, parts: CandidateParts
) -> tuple[list[Tensor], list[Sums]]:
    """Compute the stacks of maps that the terms read, and the sums of each of the normalised ones, which come first."""
    maps: list[Tensor] = []
    sums: list[Sums] = []
    if plan.reductions:
        z, own = parts.reductions_forward(state, weights)
        maps.append(z)
        sums.append(own)
    if plan.pools:
        z, own = parts.pooling_forward(state, plan.stride)
        maps.append(z)
        sums.append(own)
    if plan.identity:
        maps.append(state[None])
    return maps, sums


@dataclass
class TermsBackward:
    """The backward pass of the maps that are not separable.

    Attributes:
        maps: the stacks of :func:`term_maps`.
        grads: the gradients of the edges.
        found: the result of the sums' backward pass, which determines the gradient of every map.
    """

    plan: Plan
    parts: CandidateParts
    state: Tensor
    maps: Sequence[Tensor]
    grads: Sequence[Tensor]
    found: TermGradients

    def reductions(
        self, weights: ReductionWeights, feedback: ReductionWeights, weight_grads: bool
    ) -> tuple[Tensor, ReductionWeights]:
        """Compute the error at the state and the gradients of the weights."""
        return self.parts.reductions_backward(self.prologue(), self.state, weights, feedback, weight_grads)

    def prologue(self) -> Prologue:
        """Describe the gradients of the reductions' maps."""
        plan, found = self.plan, self.found
        count = plan.reductions
        terms = tuple(term for (term,) in plan.terms_of[:count])  # each has separate weights, hence one term
        grads = [self.grads[plan.terms.edges[term]] for term in terms]
        a = found.a[table(terms, found.a.device)]
        return Prologue(grads, self.maps[0], a, found.b[:count], found.d[:count])

    def pools(self) -> Tensor:
        """Compute the error at the state."""
        plan, found = self.plan, self.found
        first = plan.reductions
        stacks = [*(grad[None] for grad in self.grads), self.maps[plan.pools_at]]
        factors = torch.cat([found.a, found.b])[table(plan.pool_rows, found.a.device)]
        offset = found.d[first : first + POOLS]
        delta = self.parts.sum_forward(stacks, plan.pool_terms, factors, offset, [None] * POOLS)
        return self.parts.pooling_backward(delta, self.state, plan.stride)
