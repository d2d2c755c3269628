"""The Triton kernels as a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bionas_fast.kernels.mixed_sum import triton as mixed_sum
from bionas_fast.kernels.normalisation import triton as normalisation
from bionas_fast.kernels.pooling import triton as pooling
from bionas_fast.kernels.records import (
    Affine,
    Moments,
    Prologue,
    Running,
    SeparablePlan,
    SeparableWeights,
    Separated,
    Stage,
    StageGradients,
    StageWeights,
    Sums,
    TermGradients,
    Terms,
)
from bionas_fast.kernels.separable_stage import triton as separable_stage
from bionas_fast.ops.mixed_edges.backends.base import Backend


class Triton(Backend):
    """Triton kernels for GPUs, each with its batch normalisation; cases that they do not support run on the reference.

    With a synchroniser, sums are added up and batch normalisation is plain PyTorch.
    """

    moves_statistics = True
    factors = torch.float32

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

    def together(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        return grads if len(grads) == 1 else torch.stack([*grads]).unbind()

    def joined_sums(self, maps: Sequence[Tensor], sums: Sequence[Sums]) -> Sums:
        if not mixed_sum.supports(maps):
            return super().joined_sums(maps, sums)
        # The blocks of different kernels differ.
        count = sum(map(len, maps))
        each, terms = [one for stack in maps for one in stack], Terms((*range(count),), (*range(count),), count)
        return Sums(*mixed_sum.partial_sums(each, maps, terms).split(count))

    def edges_forward(
        self,
        x: Tensor,
        weights: SeparableWeights,
        plan: SeparablePlan,
        mixing: Tensor,
        moments: Moments | None,
        into: Sequence[Tensor | None],
        running: Running | None = None,
    ) -> Separated:
        twice, branches = plan.twice, len(plan.edges)
        if not (self._normalises([x[None]]) and separable_stage.supports(x, plan.first) and twice):
            return super().edges_forward(x, weights, plan, mixing, moments, into, running)
        # As in the composition, but both stages write into one z, one table of sums and one of moments.
        first, rest = plan.first.first(twice), plan.first.rest(twice)
        z, sums = separable_stage.allocate(x, weights.first, plan.first, branches)
        if branches > twice:
            separable_stage.write(z[twice:], sums[:, twice:], x, weights.first.rest(first), rest)
        z1, between = separable_stage.partial_forward(x, weights.first.first(first), first)
        rows = slice(twice), slice(twice, None)
        positions = _positions([z])
        whole = moments or Moments(*x.new_empty(2, plan.normalisations, x.shape[-1], dtype=torch.float64).unbind())

        def normalised(part: int, terms: Terms, factors: Tensor | None, own: Sums) -> normalisation.Normalised:
            moved = None if running is None else running.rows(rows[part])
            out = whole.rows(rows[part])
            given = None if moments is None else out
            return normalisation.forward(None if given else own, given, terms, factors, positions, moved, out)

        affine = normalised(0, _each(twice), None, between)
        second = Affine(affine.weight, affine.shift)
        separable_stage.write(z[:twice], sums[:, :twice], z1, weights.second, plan.second, second)
        last = normalised(1, plan.terms, mixing, Sums(*sums.unbind()))
        out = mixed_sum.weighted([z], plan.terms, last.weight, last.shift, into, of_terms=True)
        return Separated(out, z, whole)

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
        given = sums if moments is None else None
        weight, shift, moments = normalisation.forward(given, moments, terms, factors, _positions(maps), running)
        return mixed_sum.weighted(maps, terms, weight, shift, into, of_terms=True), moments

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
        given = sums if moments is None else None
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

    def _normalises(self, maps: Sequence[Tensor]) -> bool:
        """Whether the kernels of batch normalisation support this case."""
        return self.synchroniser is None and mixed_sum.supports(maps) and maps[0].dtype == torch.float32


def _positions(maps: Sequence[Tensor]) -> int:
    return maps[0].shape[1:-1].numel()


def _each(count: int) -> Terms:
    """Return one term for each map, by itself."""
    return Terms((*range(count),), (*range(count),), count)
