"""The compiled kernels as a backend, from records to the operators of ``csrc``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bionas_fast.kernels.records import (
    Affine,
    EdgesGradients,
    Moments,
    Prologue,
    ReductionWeights,
    Running,
    SavedEdges,
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
from bionas_fast.ops.mixed_edges.backends.base import Backend

# `.default` names the overload: torch's overload resolution takes longer than some of the calls.
_ops = torch.ops.bionas_fast_native


class Native(Backend):
    """C++ kernels for float32 on the CPU and a multiple of 16 channels; weights may have fewer."""

    multiple = 16
    images = 1

    def stage_forward(
        self, x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None
    ) -> tuple[Tensor, Sums]:
        z, *sums = _ops.stage_forward.default(x, weights, stage.encode(), affine or ())
        return z, Sums(*sums)

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
        grads, *rest = prologue
        return StageGradients(
            *_ops.stage_backward.default(grads, rest, x, weights, feedback, stage.encode(), affine or (), weight_grads)
        )

    def sum_forward(
        self, maps: Sequence[Tensor], terms: Terms, weight: Tensor, offset: Tensor, into: Sequence[Tensor | None]
    ) -> list[Tensor]:
        return _ops.mixed_sum.default(maps, terms.encode(), weight, offset, into)

    def sum_backward(self, grads: Sequence[Tensor], maps: Sequence[Tensor], terms: Terms) -> tuple[Tensor, Tensor]:
        return _ops.mixed_sum_backward.default(grads, maps, terms.encode())

    def pooling_forward(self, x: Tensor, stride: int) -> tuple[Tensor, Sums]:
        z, *sums = _ops.pooling.default(x, stride)
        return z, Sums(*sums)

    def pooling_backward(self, grads: Sequence[Tensor], x: Tensor, stride: int) -> Tensor:
        return _ops.pooling_backward.default(grads, x, stride)

    def reductions_forward(self, x: Tensor, weights: ReductionWeights) -> tuple[Tensor, Sums]:
        z, *sums = _ops.factorized_reduce.default(x, weights, self.images)
        return z, Sums(*sums)

    def reductions_backward(
        self, prologue: Prologue, x: Tensor, weights: ReductionWeights, feedback: ReductionWeights, weight_grads: bool
    ) -> tuple[Tensor, ReductionWeights]:
        grads, *rest = prologue
        down, *made = _ops.factorized_reduce_backward.default(
            grads, rest, x, weights, feedback, weight_grads, self.images
        )
        return down, ReductionWeights(*made)


class Fused(Native):
    """C++ kernels with batch normalisation fused; its statistics are those of this process.

    Args:
        images: how many images lie side by side in the channels of a map.
    """

    most_images = 16

    def __init__(self, images: int = 1) -> None:
        super().__init__(None)
        self.images = images

    def of_images(self, images: int) -> Fused:
        return self if images == self.images else Fused(images)

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
        out, z, *found = _ops.separable_edges.default(
            x, weights.tensors(), plan.encode(), mixing, moments or (), into, self.images
        )  # fmt: skip
        return Separated(out, z, Moments(*found))

    def edges_backward(
        self,
        grads: Sequence[Tensor],
        saved: SavedEdges,
        weights: SeparableWeights,
        feedback: SeparableWeights | None,
        plan: SeparablePlan,
        mixing: Tensor,
        weight_grads: bool,
    ) -> EdgesGradients:
        return EdgesGradients(
            *_ops.separable_edges_backward.default(
                grads,
                [saved.x, saved.z, *saved.moments],
                weights.tensors(),
                [] if feedback is None else feedback.tensors(),
                plan.encode(),
                mixing,
                saved.training,
                weight_grads,
                self.images,
            )
        )

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
        out, *found = _ops.normalised_sum.default(maps, terms.encode(), factors, sums, moments or (), into, self.images)
        return out, Moments(*found)

    def normalised_backward(
        self,
        grads: Sequence[Tensor],
        maps: Sequence[Tensor],
        terms: Terms,
        factors: Tensor,
        moments: Moments,
        training: bool,
    ) -> TermGradients:
        return TermGradients(
            *_ops.normalised_sum_backward.default(grads, maps, terms.encode(), factors, moments, training, self.images)
        )
