"""The interface of the kernels of which both passes of all candidates are composed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from bionas_fast.kernels.parts import Parts
from bionas_fast.kernels.records import (
    EdgesGradients,
    Moments,
    Prologue,
    ReductionWeights,
    Running,
    SavedEdges,
    SeparablePlan,
    SeparableWeights,
    Separated,
    Sums,
)


class CandidateParts(Parts, Protocol):
    """Besides the stage and the sum: the separable edges, the reductions and the pools; see ``Backend``."""

    factors: torch.dtype

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
        """Implement ``kernels.separable_edges.composition.forward``."""

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
        """Implement ``kernels.separable_edges.composition.backward``."""

    def pooling_forward(self, x: Tensor, stride: int) -> tuple[Tensor, Sums]:
        """Implement ``kernels.pooling.reference.forward``."""

    def pooling_backward(self, grads: Sequence[Tensor], x: Tensor, stride: int) -> Tensor:
        """Implement ``kernels.pooling.reference.backward``."""

    def reductions_forward(self, x: Tensor, weights: ReductionWeights) -> tuple[Tensor, Sums]:
        """Implement ``kernels.factorized_reduce.reference.forward``."""

    def reductions_backward(
        self, prologue: Prologue, x: Tensor, weights: ReductionWeights, feedback: ReductionWeights, weight_grads: bool
    ) -> tuple[Tensor, ReductionWeights]:
        """Implement ``kernels.factorized_reduce.reference.backward``."""

    def joined_sums(self, maps: Sequence[Tensor], sums: Sequence[Sums]) -> Sums:
        """Concatenate the sums of stacks of maps."""
