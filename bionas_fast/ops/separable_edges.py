"""The separable candidates of all edges that leave a state, and their mixed sum: one op, one backward pass.

Sep-convolutions are two stages with batch normalisation behind each, dilated ones a single stage. All first stages
read the same state; so one pass over it serves every branch of every edge. Between the stages batch normalisation is an
affine map per channel that the next kernel applies as it reads, and its backward pass an affine map that the previous
kernel applies as it reads: neither is ever written to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bionas_fast import backends, native
from bionas_fast.kernels.mixed_sum import reference as mixed_sum_reference
from bionas_fast.kernels.separable_stage import reference as stage_reference

EPSILON = 1e-5

backends.declare("separable_edges", native=native.obstacle)


@dataclass(frozen=True)
class Branches:
    """The separable branches of E edges: first those of two stages, then those of one.

    Attributes:
        kernels, dilations: of the first stage, one number a branch.
        edges: the edge of each branch.
        twice: how many of them have a second stage (same kernel, stride 1, dilation 1).
        stride: of the first stage.
        count: E.
    """

    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    edges: tuple[int, ...]
    twice: int
    stride: int
    count: int


@dataclass
class Statistics:
    """Running mean and variance of the K first and M second batch normalisations, [K, C] and [M, C]."""

    first_mean: Tensor
    first_var: Tensor
    second_mean: Tensor
    second_var: Tensor
    momentum: float = 0.1


class _Reference:
    """Plain PyTorch, any device and floating-point type."""

    stage_forward = staticmethod(stage_reference.forward)
    stage_backward = staticmethod(stage_reference.backward)
    mixed_forward = staticmethod(mixed_sum_reference.forward)
    mixed_backward = staticmethod(mixed_sum_reference.backward)
    pad = staticmethod(lambda x: x)


class _Native:
    """The compiled kernels: float32 on the CPU, channels in multiples of 16."""

    stage_forward = staticmethod(lambda *args: torch.ops.bionas_fast_native.stage_forward(*args))
    stage_backward = staticmethod(lambda *args: torch.ops.bionas_fast_native.stage_backward(*args))
    mixed_forward = staticmethod(lambda *args: torch.ops.bionas_fast_native.mixed_sum(*args))
    mixed_backward = staticmethod(lambda *args: torch.ops.bionas_fast_native.mixed_sum_backward(*args))

    @staticmethod
    def pad(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, -x.shape[-1] % 16))


_KERNELS = {"reference": _Reference, "native": _Native}

#: Called in the backward pass: the feedback for (first depthwise, first pointwise, second depthwise, second pointwise).
MakeFeedback = Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]


def separable_edges(
    x: Tensor,
    weights: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    branches: Branches,
    statistics: Statistics,
    make_feedback: MakeFeedback,
    training: bool,
    backend: str | None = None,
) -> Tensor:
    """Σ over the branches of every edge of weight · BN(…).

    Args:
        x: the state, [N, H, W, C].
        weights: mixing weights of the branches, [K].
        first, second: (depthwise, pointwise) of the two stages, laid out as ``kernels.separable_stage`` says.
        statistics: updated in training, used otherwise.
        make_feedback: called once in the backward pass, and only where an error or a weight gradient needs it.
        training: whether batch normalisation uses the statistics of this batch.

    Returns:
        [E, N, H_out, W_out, C].
    """
    chosen = backends.choose("separable_edges", x.device.type, backend)
    # Sums over whole batches are taken in the weights' precision: under autocast that is float32.
    precise = x.to(first[0].dtype)
    kernel = _KERNELS[chosen if precise.dtype == torch.float32 else "reference"]
    out = _SeparableEdges.apply(
        precise, weights, *first, *second, branches, statistics, make_feedback, training, kernel
    )
    return out.to(x.dtype)


class _SeparableEdges(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        depthwise1: Tensor,
        pointwise1: Tensor,
        depthwise2: Tensor,
        pointwise2: Tensor,
        br: Branches,
        statistics: Statistics,
        make_feedback: MakeFeedback,
        training: bool,
        kernel: Any,
    ) -> Tensor:
        channels = x.shape[-1]
        state = kernel.pad(x.contiguous())
        m = br.twice
        z1, *sums = kernel.stage_forward(state, depthwise1, pointwise1, br.kernels, br.dilations, br.stride, None, None)
        positions = z1[0].numel() // z1.shape[-1]
        mean1, rstd1 = _normalise(sums, positions, statistics.first_mean, statistics.first_var, statistics, training)
        maps = [z1]
        mean, rstd = mean1, rstd1
        scale = shift = None
        if m:
            scale, shift = rstd1[:m].to(x.dtype), (-mean1[:m] * rstd1[:m]).to(x.dtype)
            z2, *sums = kernel.stage_forward(z1[:m], depthwise2, pointwise2, br.kernels[:m], (1,) * m, 1, scale, shift)
            mean2, rstd2 = _normalise(
                sums, positions, statistics.second_mean, statistics.second_var, statistics, training
            )
            maps = [z2, z1[m:]]
            mean, rstd = torch.cat([mean2, mean1[m:]]), torch.cat([rstd2, rstd1[m:]])
        wide = weights.double()[:, None]
        edges = torch.tensor(br.edges, device=x.device)
        offset = torch.zeros(br.count, mean.shape[1], dtype=torch.float64, device=x.device)
        offset.index_add_(0, edges, -wide * rstd * mean)
        out = kernel.mixed_forward(maps, br.edges, (wide * rstd).to(x.dtype), offset.to(x.dtype))
        ctx.save_for_backward(
            state,
            z1,
            z2 if m else None,
            weights,
            depthwise1,
            pointwise1,
            depthwise2,
            pointwise2,
            scale,
            shift,
            mean1,
            rstd1,
            mean,
            rstd,
        )
        ctx.static = br, make_feedback, training, kernel, channels, positions
        return out[..., :channels].contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        state, z1, z2, weights, *tensors, scale, shift, mean1, rstd1, mean, rstd = ctx.saved_tensors
        depthwise1, pointwise1, depthwise2, pointwise2 = tensors
        br, make_feedback, training, kernel, channels, positions = ctx.static
        m, want_x, want_weights = br.twice, ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:6])
        grad = kernel.pad(grad.contiguous())
        maps = [z2, z1[m:]] if m else [z1]
        grad_sum, products = kernel.mixed_backward(maps, br.edges, grad)
        grad_sum = grad_sum[torch.tensor(br.edges, device=grad.device)]
        normalised = rstd * (products - mean * grad_sum)  # Σ grad · ẑ
        grad_weights = normalised.sum(dim=1).to(weights.dtype)
        if not (want_x or want_weights):
            return (None, grad_weights, *[None] * 9)

        feedback = make_feedback()
        p = weights.double()[:, None]
        a, b, d = _normalise_backward(p, rstd, mean, grad_sum * p, normalised * p, positions, training)
        a1, b1, d1 = a, b, d = [value.to(grad.dtype) for value in (a, b, d)]
        own = None
        index = list(br.edges)
        grads2: tuple[Tensor | None, Tensor | None] = (None, None)
        if m:
            own, own_sum, own_products, *grads2 = kernel.stage_backward(
                grad,
                None,
                br.edges[:m],
                z2,
                a[:m],
                b[:m],
                d[:m],
                z1[:m],
                depthwise2,
                pointwise2,
                *feedback[2:],
                br.kernels[:m],
                (1,) * m,
                1,
                scale,
                shift,
                want_weights,
            )
            own_normalised = rstd1[:m] * (own_products - mean1[:m] * own_sum)
            ones = torch.ones_like(p[:m])
            first = _normalise_backward(ones, rstd1[:m], mean1[:m], own_sum, own_normalised, positions, training)
            a1, b1, d1 = (torch.cat([x.to(y.dtype), y[m:]]) for x, y in zip(first, (a, b, d), strict=True))
            index[:m] = range(br.count, br.count + m)
        grad_x, _, _, *grads1 = kernel.stage_backward(
            grad,
            own,
            index,
            z1,
            a1,
            b1,
            d1,
            state,
            depthwise1,
            pointwise1,
            *feedback[:2],
            br.kernels,
            br.dilations,
            br.stride,
            None,
            None,
            want_weights,
        )
        if not want_weights:
            grads1 = grads2 = (None, None)
        return (grad_x[..., :channels].contiguous() if want_x else None, grad_weights, *grads1, *grads2, *[None] * 5)


def _normalise(
    sums: list[Tensor],
    positions: int,
    running_mean: Tensor,
    running_var: Tensor,
    statistics: Statistics,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Mean and 1/√(var + ε) in float64, [K, C] padded like the sums; the running values follow in training."""
    total, squares = sums
    channels = running_mean.shape[1]
    if training:
        mean = total / positions
        var = (squares / positions - mean.square()).clamp_(min=0)
        unbiased = var * (positions / max(positions - 1, 1))
        running_mean.lerp_(mean[:, :channels].to(running_mean.dtype), statistics.momentum)
        running_var.lerp_(unbiased[:, :channels].to(running_var.dtype), statistics.momentum)
    else:
        padding = (0, total.shape[1] - channels)
        mean = torch.nn.functional.pad(running_mean.double(), padding)
        var = torch.nn.functional.pad(running_var.double(), padding, value=1.0)
    return mean, (var + EPSILON).rsqrt()


def _normalise_backward(
    weight: Tensor, rstd: Tensor, mean: Tensor, grad_sum: Tensor, normalised: Tensor, positions: int, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, d such that the gradient of z is a · g + b · z + d, where the gradient of ẑ is weight · g.

    Args:
        grad_sum, normalised: Σ of the gradient of ẑ, and Σ of its product with ẑ; [K, C].
    """
    a = weight * rstd
    if not training:
        zero = torch.zeros_like(a)
        return a, zero, zero
    slope = rstd.square() * normalised / positions
    return a, -slope, slope * mean - rstd * grad_sum / positions
