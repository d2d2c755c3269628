"""The interface of the backends of mixed_edges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bionas_fast.kernels.batch_norm import Synchroniser
from bionas_fast.kernels.factorized_reduce import reference as factorized_reduce
from bionas_fast.kernels.mixed_sum import normalised
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
from bionas_fast.kernels.separable_edges import composition
from bionas_fast.ops.mixed_edges import composed
from bionas_fast.ops.mixed_edges.plan import Plan, Weights
from bionas_fast.ops.mixed_edges.records import Feedbacks, Gradients, Mixed, SavedState


class Backend(ABC):
    """An implementation of the kernels of mixed_edges.

    Every backend implements the stage, the sum and the pools. The separable edges and the normalised sum, which contain
    a batch normalisation, are composed of these unless a backend fuses them, and so are both passes of all candidates.

    Args:
        synchroniser: sums the statistics of batch normalisation over processes; None for those of this process alone.

    Attributes:
        multiple: a divisor of every number of channels that the backend supports.
        most_images: how many images may lie side by side in the channels of a map.
        moves_statistics: whether the running statistics move within the kernels that compute moments.
        factors: the dtype in which the mixing weights are passed.
        wide_sums: whether the sums of edges are float32 where maps are bfloat16, see ``kernels.maps``.
    """

    multiple: int = 1
    most_images: int = 1
    moves_statistics: bool = False
    factors: torch.dtype = torch.float64
    wide_sums: bool = True

    def __init__(self, synchroniser: Synchroniser | None = None) -> None:
        self.synchroniser = synchroniser

    def of_images(self, images: int) -> Backend:
        """Return this backend for maps with several images side by side in their channels; see ``Layout``."""
        assert images == 1
        return self

    @abstractmethod
    def stage_forward(
        self, x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None
    ) -> tuple[Tensor, Sums]:
        """Implement ``kernels.separable_stage.reference.forward``."""

    @abstractmethod
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

    @abstractmethod
    def sum_forward(
        self, maps: Sequence[Tensor], terms: Terms, weight: Tensor, offset: Tensor, into: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Implement ``kernels.mixed_sum.reference.forward``."""

    @abstractmethod
    def sum_backward(self, grads: Sequence[Tensor], maps: Sequence[Tensor], terms: Terms) -> tuple[Tensor, Tensor]:
        """Implement ``kernels.mixed_sum.reference.backward``."""

    @abstractmethod
    def pooling_forward(self, x: Tensor, stride: int) -> tuple[Tensor, Sums]:
        """Implement ``kernels.pooling.reference.forward``."""

    @abstractmethod
    def pooling_backward(self, grads: Sequence[Tensor], x: Tensor, stride: int) -> Tensor:
        """Implement ``kernels.pooling.reference.backward``."""

    def reductions_forward(self, x: Tensor, weights: ReductionWeights) -> tuple[Tensor, Sums]:
        """Implement ``kernels.factorized_reduce.reference.forward`` by matrix products."""
        return factorized_reduce.forward(x, weights)

    def reductions_backward(
        self, prologue: Prologue, x: Tensor, weights: ReductionWeights, feedback: ReductionWeights, weight_grads: bool
    ) -> tuple[Tensor, ReductionWeights]:
        """Implement ``kernels.factorized_reduce.reference.backward`` by matrix products."""
        return factorized_reduce.backward(prologue, x, weights, feedback, weight_grads)

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
        return composition.forward(self, x, weights, plan, mixing, moments, into, running)

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
        return composition.backward(self, grads, saved, weights, feedback, plan, mixing, weight_grads)

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
        return normalised.forward(self, maps, terms, factors, sums, moments, into, running)

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
        return normalised.backward(self, grads, maps, terms, factors, moments, training)

    def affine_forward(
        self, sums: Sums, moments: Moments | None, like: Tensor, running: Running | None = None
    ) -> tuple[Affine, Moments]:
        """Implement ``kernels.mixed_sum.normalised.affine_forward``."""
        return normalised.affine_forward(sums, moments, like, running, self.synchroniser)

    def affine_backward(
        self, sums: Sums, moments: Moments, like: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implement ``kernels.mixed_sum.normalised.affine_backward``."""
        return normalised.affine_backward(sums, moments, like, training, self.synchroniser)

    def joined_sums(self, maps: Sequence[Tensor], sums: Sequence[Sums]) -> Sums:
        """Concatenate the sums of stacks of maps."""
        whole = [own.whole() for own in sums]
        return Sums(torch.cat([own.total for own in whole]), torch.cat([own.squares for own in whole]))

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
        """Implement ``ops.mixed_edges.composed.forward``."""
        return composed.forward(self, state, weights, plan, factors, moments, into, running)

    def backward(
        self,
        grads: Sequence[Tensor],
        saved: SavedState,
        weights: Weights,
        feedback: Feedbacks | None,
        plan: Plan,
        factors: Tensor,
    ) -> Gradients:
        """Implement ``ops.mixed_edges.composed.backward``."""
        return composed.backward(self, grads, saved, weights, feedback, plan, factors)

    def stacks(self, state: Tensor, weights: Weights, plan: Plan, moments: Moments) -> list[Tensor]:
        """Implement ``ops.mixed_edges.composed.stacks``."""
        return composed.stacks(self, state, weights, plan, moments)
