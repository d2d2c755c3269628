"""The Triton kernels as a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bionas_fast.kernels.factorized_reduce import triton as factorized_reduce
from bionas_fast.kernels.maps import precise
from bionas_fast.kernels.mixed_sum import triton as mixed_sum
from bionas_fast.kernels.normalisation import triton as normalisation
from bionas_fast.kernels.partial_sums import triton as partial_sums
from bionas_fast.kernels.pooling import triton as pooling
from bionas_fast.kernels.records import (
    Affine,
    Moments,
    Prologue,
    ReductionWeights,
    Running,
    Stage,
    StageGradients,
    StageWeights,
    Sums,
    TermGradients,
    Terms,
)
from bionas_fast.kernels.separable_stage import triton as separable_stage
from bionas_fast.ops.mixed_edges.backends.base import Backend
from bionas_fast.ops.mixed_edges.plan import POOLS, Plan, Weights
from bionas_fast.ops.mixed_edges.records import Feedbacks, Gradients, Mixed, SavedState
from bionas_fast.ops.mixed_edges.terms import TermsBackward, term_maps


class Triton(Backend):
    """Triton kernels for GPUs, each with its batch normalisation; cases that they do not support run on the reference.

    With a synchroniser, sums are added up and batch normalisation is plain PyTorch.
    """

    moves_statistics = True
    factors = torch.float32
    wide_sums = False

    sum_forward = staticmethod(mixed_sum.forward)
    sum_backward = staticmethod(mixed_sum.backward)
    pooling_backward = staticmethod(pooling.backward)

    def stage_forward(
        self, x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None
    ) -> tuple[Tensor, Sums]:
        return separable_stage.partial_forward(x, weights, stage, affine)

    def stage_backward(
        self,
        prologue: Prologue,
        x: Tensor,
        weights: StageWeights,
        feedback: StageWeights,
        stage: Stage,
        affine: Affine | None,
        weight_grads: bool,
    ) -> StageGradients:
        return separable_stage.partial_backward(prologue, x, weights, feedback, stage, affine, weight_grads)

    def pooling_forward(self, x: Tensor, stride: int) -> tuple[Tensor, Sums]:
        return pooling.partial_forward(x, stride)

    def reductions_forward(self, x: Tensor, weights: ReductionWeights) -> tuple[Tensor, Sums]:
        return factorized_reduce.partial_forward(x, weights)

    def reductions_backward(
        self, prologue: Prologue, x: Tensor, weights: ReductionWeights, feedback: ReductionWeights, weight_grads: bool
    ) -> tuple[Tensor, ReductionWeights]:
        return factorized_reduce.backward(prologue, x, weights, feedback, weight_grads)

    def joined_sums(self, maps: Sequence[Tensor], sums: Sequence[Sums]) -> Sums:
        if not mixed_sum.supports(maps):
            return super().joined_sums(maps, sums)
        # The blocks of different kernels differ.
        count = sum(map(len, maps))
        each, terms = [one for stack in maps for one in stack], Terms((*range(count),), (*range(count),), count)
        return Sums(*mixed_sum.partial_sums(each, maps, terms).split(count))

    def normalised_forward(
        self,
        maps: Sequence[Tensor],
        terms: Terms,
        factors: Tensor,
        sums: Sums,
        moments: Moments | None,
        into: Sequence[Tensor | None],
        running: Running | None = None,
    ) -> tuple[list[Tensor], Moments]:
        if not (self._normalises(maps) and (moments is not None or sums.partial)):
            return super().normalised_forward(maps, terms, factors, sums, moments, into, running)
        given = [_joined(sums)] if moments is None else None
        found = normalisation.forward(given, moments, terms, factors, _positions(maps), running)
        return [*_normalised_sum(maps, terms, found, into).unbind()], found.moments

    def normalised_backward(
        self,
        grads: Sequence[Tensor],
        maps: Sequence[Tensor],
        terms: Terms,
        factors: Tensor,
        moments: Moments,
        training: bool,
    ) -> TermGradients:
        if not self._normalises(maps):
            return super().normalised_backward(grads, maps, terms, factors, moments, training)
        sums = mixed_sum.partial_sums(grads, maps, terms)
        return normalisation.backward(sums, moments, terms, factors, _positions(maps), training)

    def affine_forward(
        self, sums: Sums, moments: Moments | None, like: Tensor, running: Running | None = None
    ) -> tuple[Affine, Moments]:
        if not (self._normalises([like]) and (moments is not None or sums.partial)):
            return super().affine_forward(sums, moments, like, running)
        given = [_joined(sums)] if moments is None else None
        found = normalisation.forward(given, moments, _each(len(like)), None, _positions([like]), running)
        return Affine(found.weight, found.shift), found.moments

    def affine_backward(
        self, sums: Sums, moments: Moments, like: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not (self._normalises([like]) and sums.partial):
            return super().affine_backward(sums, moments, like, training)
        both = sums.joined()
        found = normalisation.backward(both, moments, _each(len(like)), None, _positions([like]), training)
        return found.a, found.b, found.d

    def forward(
        self,
        state: Tensor,
        weights: Weights,
        plan: Plan,
        factors: Tensor,
        moments: Moments | None,
        into: Sequence[Tensor | None],
        running: Running | None,
    ) -> Mixed:
        if not self.fuses(state, plan):
            return super().forward(state, weights, plan, factors, moments, into, running)
        found = self.fused(state, weights, plan, factors, moments, into, running)
        own = found.moments
        return Mixed([*found.out.unbind()], own if moments is None else None, [*own, *found.saved])

    def fused(
        self,
        state: Tensor,
        weights: Weights,
        plan: Plan,
        factors: Tensor,
        moments: Moments | None,
        into: Sequence[Tensor | None],
        running: Running | None,
    ) -> FusedSum:
        """Compute the results of :meth:`forward`, the sums as one tensor, where :meth:`fuses` holds."""
        found = self._before_sum(state, weights, plan, moments, running)
        rows = slice(plan.separable.twice, None)
        given = None if moments is None else moments.rows(rows)
        moved = None if running is None else running.rows(rows)
        sums, positions, own = found.sums if moments is None else None, _positions(found.maps), found.moments.rows(rows)
        last = normalisation.forward(sums, given, plan.mixed, factors, positions, moved, own)
        out = _normalised_sum(found.maps, plan.mixed, last, into)
        kept = [*found.maps]
        if plan.pools:  # recomputed in the backward pass
            del kept[(plan.branches > 0) + (plan.reductions > 0)]
        if plan.identity:  # the state
            kept.pop()
        return FusedSum(out, found.moments, [*(found.between or ()), *kept])

    def stacks(self, state: Tensor, weights: Weights, plan: Plan, moments: Moments) -> list[Tensor]:
        if not self.fuses(state, plan):
            return super().stacks(state, weights, plan, moments)
        return self._before_sum(state, weights, plan, moments, None).maps

    def _before_sum(
        self, state: Tensor, weights: Weights, plan: Plan, moments: Moments | None, running: Running | None
    ) -> _BeforeSum:
        """Compute the maps of all candidates; all separable ones write into one stack."""
        separable, twice, channels = plan.separable, plan.separable.twice, state.shape[-1]
        count = separable.normalisations + plan.reductions + POOLS * plan.pools
        whole = moments or Moments(*state.new_empty(2, count, channels, dtype=torch.float64).unbind())
        maps: list[Tensor] = []
        sums: list[Tensor] = []
        between: Affine | None = None
        if plan.branches:
            z, own = separable_stage.allocate(state, weights.separable.first, separable.first, plan.branches)
            first, rest = separable.first.first(twice), separable.first.rest(twice)
            if plan.branches > twice:
                once = weights.separable.first.rest(first)
                separable_stage.write(z[twice:], own[:, twice:], state, once, rest)
            if twice:
                z1, own1 = separable_stage.allocate(state, weights.separable.first, first, twice)
                separable_stage.write(z1, own1, state, weights.separable.first.first(first), first)
                rows = slice(twice)
                affine = normalisation.forward(
                    [own1] if moments is None else None,
                    None if moments is None else moments.rows(rows),
                    _each(twice),
                    None,
                    _positions([z]),
                    None if running is None else running.rows(rows),
                    whole.rows(rows),
                )
                between = Affine(affine.weight, affine.shift)
                separable_stage.write(
                    z[:twice], own[:, :twice], z1, weights.separable.second, separable.second, between
                )
            maps.append(z)
            sums.append(own)
        others, of_others = term_maps(state, weights.reductions, plan, self)
        return _BeforeSum([*maps, *others], [*sums, *map(_joined, of_others)], whole, between)

    def backward(
        self,
        grads: Sequence[Tensor],
        saved: SavedState,
        weights: Weights,
        feedback: Feedbacks | None,
        plan: Plan,
        factors: Tensor,
    ) -> Gradients:
        state, tensors, training = saved
        if not self.fuses(state, plan):
            return super().backward(grads, saved, weights, feedback, plan, factors)
        twice, branches, channels = plan.separable.twice, plan.branches, state.shape[-1]
        mean, var, *kept = (own for own in tensors if own is not None)
        moments = Moments(mean, var)
        between = Affine(*kept[:2]) if twice else None
        maps = kept[2:] if twice else kept
        if plan.pools:
            maps.insert(int(branches > 0) + plan.pools_at, pooling.partial_forward(state, plan.stride)[0])
        if plan.identity:
            maps.append(state[None])
        last = moments.rows(slice(twice, None))
        terms, count = plan.mixed, len(last.mean)
        table = state.new_empty(len(terms.index) + 2 * count, channels, dtype=torch.float32)
        own = table.split([len(terms.index), count, count])
        sums = mixed_sum.partial_sums(grads, maps, terms)
        found = normalisation.backward(sums, last, terms, factors, _positions(maps), training, own)
        if feedback is None:
            return Gradients(found.factors, None, None)
        stacks = [grad[None] for grad in grads]
        down: list[Tensor] = []
        partial: list[Tensor] = []
        if branches:
            edges = [stacks[edge] for edge in plan.separable.edges]
            inner = _Inner(maps[0], between, moments.rows(slice(twice)))
            error, own_partial = self._separable(edges, inner, saved, weights, feedback, plan, found)
            down.append(error)
            partial += own_partial
        rest = self._of_others(found, plan)
        others = TermsBackward(plan, self, state, maps[int(branches > 0) :], grads, rest)
        if plan.reductions:
            b = feedback.weights.reductions
            reduced = factorized_reduce.gradients(others.prologue(), state, b, feedback.weight_grads)
            down.append(reduced.x)
            partial += [reduced.weights] if reduced.weights is not None else []
        grad_x = None
        if feedback.error:
            if plan.pools:
                first = branches + plan.reductions
                rows = tuple(row + branches + (row >= len(plan.terms.index)) * branches for row in plan.pool_rows)
                offsets = tuple(len(terms.index) + count + first + pool for pool in range(POOLS))
                delta = mixed_sum.weighted(
                    [*stacks, maps[(branches > 0) + (plan.reductions > 0)]],
                    plan.pool_terms,
                    table,
                    table,
                    [None] * POOLS,
                    mixed_sum.Rows(rows, (-1,) * len(rows), offsets),
                )
                down.append(pooling.backward(delta.unbind(), state, plan.stride))
            grad_x = _add_up(down, stacks if plan.identity else [], feedback.identities)
        return Gradients(found.factors, grad_x, partial_sums.add_up(partial, precise(state.dtype)) if partial else None)

    def _separable(
        self,
        grads: Sequence[Tensor],
        inner: _Inner,
        saved: SavedState,
        weights: Weights,
        feedback: Feedbacks,
        plan: Plan,
        found: TermGradients,
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the error of the separable candidates, and the weight gradients of several programs.

        Args:
            grads: the gradient of each branch, a stack of one.
            found: a, b and d; those of the branches of two stages are replaced.
        """
        separable, twice, want = plan.separable, plan.separable.twice, feedback.weight_grads
        state, w, b = saved.state, weights.separable, feedback.weights.separable
        of_branches = found.a[: plan.branches], found.b[: plan.branches], found.d[: plan.branches]
        of_first = [row[:twice] for row in of_branches]
        z, between, moments = inner
        stacks = [z]
        second: Tensor | None = None
        if between is not None:
            first = separable.first.first(twice)
            z1, _ = separable_stage.partial_forward(state, w.first.first(first), first)
            delta = separable_stage.Delta(grads[:twice], [z[:twice]], *of_first)
            own = separable_stage.gradients(delta, z1, w.second, b.second, separable.second, between, want)
            sums = own.sums.flatten(0, 1)
            normalisation.backward(sums, moments, _each(twice), None, _positions([z]), saved.training, of_first)
            grads, stacks, second = [own.x, *grads[twice:]], [z1, z[twice:]], own.weights
        delta = separable_stage.Delta(grads, stacks, *of_branches)
        below = separable_stage.gradients(delta, state, w.first, b.first, separable.first, None, want)
        return below.x, [own for own in (below.weights, second) if own is not None]

    @staticmethod
    def _of_others(found: TermGradients, plan: Plan) -> TermGradients:
        """Select what concerns the maps of the terms."""
        first = plan.branches
        return TermGradients(found.factors, found.a[first:], found.b[first:], found.d[first:])

    def fuses(self, state: Tensor, plan: Plan) -> bool:
        """Whether the kernels support all candidates and their batch normalisations."""
        return self._normalises([state[None]]) and separable_stage.supports(state, plan.separable.first)

    def _normalises(self, maps: Sequence[Tensor]) -> bool:
        """Whether the kernels of batch normalisation support this case."""
        return self.synchroniser is None and mixed_sum.supports(maps)


class _Inner(NamedTuple):
    """The inputs of the backward pass of the separable candidates.

    Attributes:
        z: the maps before the last normalisations.
        between: the normalisations between two stages.
        moments: of these.
    """

    z: Tensor
    between: Affine | None
    moments: Moments


class FusedSum(NamedTuple):
    """The sums of all edges, [E, N, H_out, W_out, C], the moments, and what else the backward pass reads."""

    out: Tensor
    moments: Moments
    saved: list[Tensor]


class _BeforeSum(NamedTuple):
    """The inputs of the mixed sum.

    Attributes:
        maps: stacks before the last normalisations: of the separable candidates, then of the terms.
        sums: partial sums of those that are normalised, [2, K_i, blocks_i, C].
        moments: of every normalisation; those of ``maps`` are written by the kernel that reads the sums.
        between: the normalisations between two stages.
    """

    maps: list[Tensor]
    sums: list[Tensor]
    moments: Moments
    between: Affine | None


def _add_up(down: Sequence[Tensor], grads: Sequence[Tensor], scale: Tensor | None) -> Tensor:
    """Compute Σ down + Σ_e scale[e] · grads[e] in one pass; ``grads`` are stacks of one."""
    if len(down) == 1 and not grads:
        return down[0]
    stacks = [*(one[None] for one in down), *grads]
    terms = Terms((*range(len(stacks)),), (0,) * len(stacks), 1)
    factors = (*(-1 for _ in down), *range(len(grads)))
    rows = mixed_sum.Rows(factors, (-1,) * len(stacks), (-1,))
    unread = down[0] if scale is None else scale
    return mixed_sum.weighted(stacks, terms, unread, unread, [None], rows)[0]


def _normalised_sum(
    maps: Sequence[Tensor], terms: Terms, found: normalisation.Normalised, into: Sequence[Tensor | None]
) -> Tensor:
    rows = mixed_sum.Rows.of(terms, offset_of_terms=True)
    return mixed_sum.weighted(maps, terms, found.weight, found.shift, into, rows)


def _joined(sums: Sums) -> Tensor:
    """Return partial sums as [2, K, blocks, C]."""
    return sums.joined().unflatten(0, (2, -1))


def _positions(maps: Sequence[Tensor]) -> int:
    return maps[0].shape[1:-1].numel()


def _each(count: int) -> Terms:
    """Return one term for each map, by itself."""
    return Terms((*range(count),), (*range(count),), count)
