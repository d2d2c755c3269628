"""The arguments and results of kernels as records, common to all implementations; they mirror the structs of ``csrc``.

Records of integers can be encoded as one list, which ``csrc/records.h`` decodes. Activations are [N, H, W, C], and
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
    """The geometry of K separable branches; the padding preserves the size at stride 1.

    Attributes:
        kernels, dilations: one number per branch.
    """

    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    stride: int = 1

    @property
    def taps(self) -> int:
        """The number of taps of all depthwise kernels."""
        return sum(k * k for k in self.kernels)

    def first(self, count: int) -> Stage:
        """Return the stage of the first ``count`` branches."""
        return Stage(self.kernels[:count], self.dilations[:count], self.stride)

    def rest(self, count: int) -> Stage:
        """Return the stage of the other branches than the first ``count``."""
        return Stage(self.kernels[count:], self.dilations[count:], self.stride)

    def encode(self) -> list[int]:
        """Encode the record for ``StageRecord`` of csrc."""
        return [self.stride, *self.kernels, *self.dilations]


@dataclass(frozen=True)
class SeparablePlan:
    """The separable branches of the edges from a state, first those of two stages and then those of one.

    Attributes:
        first: the first stages of all K branches.
        edges: the edge of each branch.
        edge_count: the number of edges.
        twice: the number of branches with a second stage: same kernel, stride 1, dilation 1.
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
    def terms(self) -> Terms:
        """The sum of the branches of each edge."""
        return Terms(tuple(range(len(self.edges))), self.edges, self.edge_count)

    @property
    def normalisations(self) -> int:
        """The number of batch normalisations: ``twice`` after first stages of two, K after last stages."""
        return self.twice + len(self.edges)

    def encode(self) -> list[int]:
        """Encode the record for ``PlanRecord`` of csrc."""
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
        """Encode the record for ``TermsRecord`` of csrc."""
        return [self.edge_count, *self.index, *self.edges]


class StageWeights(NamedTuple):
    """The weights of a stage, or their feedback.

    Attributes:
        depthwise: the branches concatenated, each [C, k, k]; flat, because kernel sizes may differ.
        pointwise: [K, C_out, C_in].
    """

    depthwise: Tensor
    pointwise: Tensor

    def first(self, stage: Stage) -> StageWeights:
        """Return the weights of the branches of ``stage``, which are the first ones."""
        channels = self.pointwise.shape[-1]
        return StageWeights(self.depthwise[: stage.taps * channels], self.pointwise[: len(stage.kernels)])

    def rest(self, stage: Stage) -> StageWeights:
        """Return the weights of the other branches than those of ``stage``, which are the first ones."""
        channels = self.pointwise.shape[-1]
        return StageWeights(self.depthwise[stage.taps * channels :], self.pointwise[len(stage.kernels) :])


class SeparableWeights(NamedTuple):
    """The weights of the first and of the second stages, or their feedback."""

    first: StageWeights
    second: StageWeights

    def tensors(self) -> list[Tensor]:
        """Return the depthwise and pointwise weights of the first stages, then those of the second."""
        return [*self.first, *self.second]


class ReductionWeights(NamedTuple):
    """The two matrices of R factorized reductions, [R, ⌈C/2⌉, C] and [R, ⌊C/2⌋, C], or their feedback."""

    first: Tensor
    second: Tensor


class Affine(NamedTuple):
    """The affine map scale · x + shift, [K, C] each."""

    scale: Tensor
    shift: Tensor


class Sums(NamedTuple):
    """The sums Σ z and Σ z² over positions, float64 [K, C]; or float32 over blocks of positions, [K, blocks, C]."""

    total: Tensor
    squares: Tensor

    @property
    def partial(self) -> bool:
        """Whether these are sums over blocks."""
        return self.total.dim() == 3

    def joined(self) -> Tensor:
        """Concatenate both, without a copy if they are halves of one tensor."""
        base = self.total._base
        if base is not None and base is self.squares._base and base.numel() == 2 * self.total.numel():
            return base.view(2 * len(self.total), *self.total.shape[1:])
        return torch.cat([self.total, self.squares])

    def whole(self) -> Sums:
        """Add up sums over blocks."""
        return Sums(*(sums.sum(dim=1, dtype=torch.float64) for sums in self)) if self.partial else self

    def rows(self, which: slice) -> Sums:
        """Select rows."""
        return Sums(self.total[which], self.squares[which])


class Moments(NamedTuple):
    """Mean and biased variance, float64 [K, C]."""

    mean: Tensor
    var: Tensor

    def rows(self, which: slice) -> Moments:
        """Select rows."""
        return Moments(self.mean[which], self.var[which])


class Running(NamedTuple):
    """Running mean and variance, [K, C] with maybe fewer channels than the maps; a step changes them in place."""

    mean: Tensor
    var: Tensor
    momentum: float

    def rows(self, which: slice) -> Running:
        """Select rows."""
        return Running(self.mean[which], self.var[which], self.momentum)


class Prologue(NamedTuple):
    """The gradient of z_k in the form a[k] · grads[k] + b[k] · z[k] + d[k], per channel.

    The backward pass of batch normalisation is such an affine map; kernels apply it on load.

    Attributes:
        grads: [N, H_out, W_out, C], one per branch; several may be the same tensor.
        z: [K, N, H_out, W_out, C].
        a, b, d: [K, C].
    """

    grads: Sequence[Tensor]
    z: Tensor
    a: Tensor
    b: Tensor
    d: Tensor

    def delta(self, branch: int) -> Tensor:
        """Compute the gradient of z of one branch."""
        return self.a[branch] * self.grads[branch] + self.b[branch] * self.z[branch] + self.d[branch]

    def deltas(self) -> Tensor:
        """Compute the gradient of z of all branches, [K, N, H_out, W_out, C]."""
        a, b, d = (value[:, None, None, None] for value in (self.a, self.b, self.d))
        return torch.addcmul(torch.addcmul(d, b, self.z.to(b.dtype)), a, torch.stack([*self.grads]))


class StageGradients(NamedTuple):
    """The results of a stage's backward pass.

    Attributes:
        x: the gradient of the input of ReLU, shaped like x.
        total, products: Σ of that gradient, and of its product with ReLU's input, as in :class:`Sums`; empty for
            shared x.
        depthwise, pointwise: the exact weight gradients; empty if not requested.
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
        z: the maps before the last normalisations, [K, N, H_out, W_out, C].
        moments: the moments of every normalisation in this pass, in the order of ``SeparablePlan.normalisations``.
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
        mixing: the gradient of the mixing weights, float64 [K].
        x: the error at the state; empty without feedback.
        weights: exact, flat, in the order of :meth:`SeparableWeights.tensors`; empty if not requested.
    """

    mixing: Tensor
    x: Tensor
    weights: Tensor


class TermGradients(NamedTuple):
    """The results of a normalised sum's backward pass.

    The gradient of map k is Σ_{terms t of k} a[t] · (gradient of its edge) + b[k] · map + d[k], where b and d apply to
    normalised maps only.

    Attributes:
        factors: float64 [T].
        a: [T, C].
        b, d: [M, C].
    """

    factors: Tensor
    a: Tensor
    b: Tensor
    d: Tensor
