"""The interface of the kernels of which the unfused ops of a supernet are composed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .batch_norm import Synchroniser
from .records import (
    Affine,
    Moments,
    Prologue,
    Running,
    Stage,
    StageGradients,
    StageWeights,
    Sums,
    TermGradients,
    Terms,
)


class Parts(Protocol):
    """The separable stage and the mixed sum of an implementation, as specified by their references."""

    @property
    def synchroniser(self) -> Synchroniser | None:
        """The sum of batch normalisation statistics over processes; None for those of this process alone."""

    def stage_forward(
        self, x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None
    ) -> tuple[Tensor, Sums]:
        """Implement ``kernels.separable_stage.reference.forward``."""

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
        """Implement ``kernels.separable_stage.reference.backward``."""

    def sum_forward(
        self, maps: Sequence[Tensor], terms: Terms, weight: Tensor, offset: Tensor, into: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Implement ``kernels.mixed_sum.reference.forward``."""

    def sum_backward(self, grads: Sequence[Tensor], maps: Sequence[Tensor], terms: Terms) -> tuple[Tensor, Tensor]:
        """Implement ``kernels.mixed_sum.reference.backward``."""

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
        """Implement ``kernels.mixed_sum.normalised.forward``."""

    def normalised_backward(
        self,
        grads: Sequence[Tensor],
        maps: Sequence[Tensor],
        terms: Terms,
        factors: Tensor,
        moments: Moments,
        training: bool,
    ) -> TermGradients:
        """Implement ``kernels.mixed_sum.normalised.backward``."""

    def affine_forward(
        self, sums: Sums, moments: Moments | None, like: Tensor, running: Running | None = None
    ) -> tuple[Affine, Moments]:
        """Implement ``kernels.mixed_sum.normalised.affine_forward``."""

    def affine_backward(
        self, sums: Sums, moments: Moments, like: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implement ``kernels.mixed_sum.normalised.affine_backward``."""
