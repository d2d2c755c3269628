"""The records that kernels take, the same for every implementation; they mirror the structs of ``csrc``.

Those of whole numbers also come as one list, which ``csrc/records.h`` takes apart. Activations are [N, H, W, C], and
H_out = ⌈H/stride⌉.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """The geometry of K separable branches; padding keeps the size at stride 1.

    Attributes:
        kernels, dilations: one number a branch.
    """

    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    stride: int = 1

    @property
    def taps(self) -> int:
        """The number of taps of all depthwise kernels."""
        return sum(k * k for k in self.kernels)

    def first(self, count: int) -> Stage:
        """The first ``count`` branches."""
        return Stage(self.kernels[:count], self.dilations[:count], self.stride)

    def encode(self) -> list[int]:
        """As ``StageRecord`` of csrc takes it."""
        return [self.stride, *self.kernels, *self.dilations]


@dataclass(frozen=True)
class SeparablePlan:
    """The separable branches of the edges that leave a state, first those of two stages and then those of one.

    Attributes:
        first: the first stages of all K branches.
        edges: the edge of each branch.
        edge_count: the number of edges.
        twice: how many branches have a second stage: same kernel, stride 1, dilation 1.
    """

    first: Stage
    edges: tuple[int, ...]
    edge_count: int
    twice: int

    @property
    def second(self) -> Stage:
        """The second stages of the ``twice`` first branches."""
        return Stage(self.first.kernels[: self.twice], (1,) * self.twice)

    @property
    def normalisations(self) -> int:
        """The number of batch normalisations: ``twice`` behind first stages of two, K behind last stages."""
        return self.twice + len(self.edges)

    def encode(self) -> list[int]:
        """As ``PlanRecord`` of csrc takes it."""
        return [self.edge_count, self.twice, *self.edges, *self.first.encode()]


@dataclass(frozen=True)
class Terms:
    """The terms of several sums of maps.

    Attributes:
        index: the map that each of the T terms reads.
        edges: the sum that each term belongs to, ascending.
        edge_count: the number of sums.
    """

    index: tuple[int, ...]
    edges: tuple[int, ...]
    edge_count: int

    def encode(self) -> list[int]:
        """As ``TermsRecord`` of csrc takes it."""
        return [self.edge_count, *self.index, *self.edges]


class StageWeights(NamedTuple):
    """The weights of a stage, or the feedback in their place.

    Attributes:
        depthwise: one branch after the other, each [C, k, k]: flat, for kernels may differ.
        pointwise: [K, C_out, C_in].
    """

    depthwise: Tensor
    pointwise: Tensor

    def first(self, stage: Stage) -> StageWeights:
        """The weights of the branches of ``stage``, which are the first ones."""
        channels = self.pointwise.shape[-1]
        return StageWeights(self.depthwise[: stage.taps * channels], self.pointwise[: len(stage.kernels)])


class SeparableWeights(NamedTuple):
    """The weights of the first and of the second stages, or the feedback in their place."""

    first: StageWeights
    second: StageWeights

    def tensors(self) -> list[Tensor]:
        """Depthwise and pointwise ones of the first stages, then of the second ones."""
        return [*self.first, *self.second]


class ReductionWeights(NamedTuple):
    """The two matrices of R factorized reductions, or the feedback in their place: [R, ⌈C/2⌉, C] and [R, ⌊C/2⌋, C]."""

    first: Tensor
    second: Tensor


class Affine(NamedTuple):
    """scale · x + shift, [K, C] each."""

    scale: Tensor
    shift: Tensor


class Sums(NamedTuple):
    """Σ z and Σ z² over positions, float64 [K, C]."""

    total: Tensor
    squares: Tensor

    def rows(self, which: slice) -> Sums:
        """Some of the rows."""
        return Sums(self.total[which], self.squares[which])


class Moments(NamedTuple):
    """Mean and biased variance, float64 [K, C]."""

    mean: Tensor
    var: Tensor

    def rows(self, which: slice) -> Moments:
        """Some of the rows."""
        return Moments(self.mean[which], self.var[which])


class Prologue(NamedTuple):
    """The gradient of z_k, a[k] · grads[k] + b[k] · z[k] + d[k] channel by channel.

    The backward pass of batch normalisation is such an affine map; kernels apply it as they read.

    Attributes:
        grads: [N, H_out, W_out, C], one a branch; several may be the same tensor.
        z: [K, N, H_out, W_out, C].
        a, b, d: [K, C].
    """

    grads: Sequence[Tensor]
    z: Tensor
    a: Tensor
    b: Tensor
    d: Tensor

    def delta(self, branch: int) -> Tensor:
        """The gradient of z of one branch."""
        return self.a[branch] * self.grads[branch] + self.b[branch] * self.z[branch] + self.d[branch]


class StageGradients(NamedTuple):
    """The results of a stage's backward pass.

    Attributes:
        x: the gradient of what ReLU saw, shaped like x.
        total, products: Σ of it and Σ of its product with what ReLU saw, float64 [K, C]; empty where x is shared.
        depthwise, pointwise: the weights' exact gradients; empty where not wanted.
    """

    x: Tensor
    total: Tensor
    products: Tensor
    depthwise: Tensor
    pointwise: Tensor


class Separated(NamedTuple):
    """The results of the separable branches' forward pass.

    Attributes:
        out: the sum of every edge, [N, H_out, W_out, C].
        z: the maps in front of the last normalisations, [K, N, H_out, W_out, C].
        moments: of every normalisation in this pass, as ``SeparablePlan.normalisations`` counts them.
    """

    out: list[Tensor]
    z: Tensor
    moments: Moments


class SavedEdges(NamedTuple):
    """The tensors of the separable branches' forward pass that their backward pass reads.

    Attributes:
        training: whether the moments are those of the batch.
    """

    x: Tensor
    z: Tensor
    moments: Moments
    training: bool


class EdgesGradients(NamedTuple):
    """The results of the separable branches' backward pass.

    Attributes:
        mixing: float64 [K].
        x: the error at the state; empty without feedback.
        weights: exact, flat, in the order of :meth:`SeparableWeights.tensors`; empty where not wanted.
    """

    mixing: Tensor
    x: Tensor
    weights: Tensor


class TermGradients(NamedTuple):
    """The results of a normalised sum's backward pass.

    The gradient of map k is Σ_{terms t of k} a[t] · (gradient of its edge) + b[k] · map + d[k], the last two where it
    is normalised.

    Attributes:
        factors: float64 [T].
        a: [T, C].
        b, d: [M, C].
    """

    factors: Tensor
    a: Tensor
    b: Tensor
    d: Tensor


def numbers(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers as a tensor to index with."""
    return torch.tensor(values, device=device)
