"""Factorized reductions in Triton, specified by :mod:`.reference`. One launch per result."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..launching import fits, grid, locate, product_precision
from ..partial_sums.triton import add_up
from ..records import Prologue, ReductionWeights, Sums
from ..tables import table
from . import reference
from .triton_kernels import (
    DTYPES,
    configurations,
    options,
    reduction_error_kernel,
    reduction_kernel,
    reduction_weight_kernel,
)

__all__ = ["PartialGradients", "backward", "configurations", "forward", "gradients", "partial_forward", "supports"]

#: Programs that sum weight gradients.
WEIGHT_PROGRAMS = 512


def forward(x: Tensor, weights: ReductionWeights) -> tuple[Tensor, Sums]:
    """Compute z [R, N, ⌈H/2⌉, ⌈W/2⌉, C] and its sums; arguments as in :func:`.reference.forward`."""
    z, sums = partial_forward(x, weights)
    return z, sums.whole()


def partial_forward(x: Tensor, weights: ReductionWeights) -> tuple[Tensor, Sums]:
    """Compute z and, where the kernel runs, its sums over blocks of positions."""
    if not supports(x):
        return reference.forward(x, weights)
    count, (images, height, width, channels) = weights.first.shape[0], x.shape
    size = (triton.cdiv(height, 2), triton.cdiv(width, 2))
    rows, launch = images * size[0] * size[1], options(channels, product_precision(x.dtype))
    z = x.new_empty(count, images, *size, channels)
    sums = x.new_empty(2, count, triton.cdiv(rows, launch["BLOCK_R"]), channels, dtype=torch.float32)
    programs, _ = grid(count, rows, channels, launch)
    with torch.cuda.device_of(x):
        reduction_kernel[programs, 2 * triton.cdiv(weights.first.shape[1], launch["BLOCK_O"])](
            p_z=z,
            p_sums=sums,
            p_x=x.contiguous(),
            p_first=weights.first.contiguous(),
            p_second=weights.second.contiguous(),
            count=count,
            rows=rows,
            channels=channels,
            height=height,
            width=width,
            out_height=size[0],
            out_width=size[1],
            **launch,
        )
    return z, Sums(*sums.unbind())


class PartialGradients(NamedTuple):
    """The results of the backward pass as the kernels write them.

    Attributes:
        x: the gradient of x.
        weights: both weight gradients, flat, of several programs, [programs, R · C · C]; None if not requested.
    """

    x: Tensor
    weights: Tensor | None


def backward(
    prologue: Prologue, x: Tensor, weights: ReductionWeights, feedback: ReductionWeights, weight_grads: bool
) -> tuple[Tensor, ReductionWeights]:
    """Compute the error and the weight gradients, see :func:`.reference.backward`."""
    if not supports(x):
        return reference.backward(prologue, x, weights, feedback, weight_grads)
    found = gradients(prologue, x, feedback, weight_grads)
    if found.weights is None:
        return found.x, ReductionWeights(x.new_empty(0), x.new_empty(0))
    flat = add_up([found.weights], weights.first.dtype).split([own.numel() for own in weights])
    return found.x, ReductionWeights(*(own.view_as(weight) for own, weight in zip(flat, weights, strict=True)))


def gradients(prologue: Prologue, x: Tensor, feedback: ReductionWeights, weight_grads: bool) -> PartialGradients:
    """Compute the error and the weight gradients of x that the kernels support."""
    count, (images, height, width, channels) = feedback.first.shape[0], x.shape
    z, x = prologue.z, x.contiguous()
    stacks = {id(own): own[None] for own in prologue.grads}  # those that are the same tensor stay so
    located = locate([*(stacks[id(own)] for own in prologue.grads), z], z.dtype, z)
    launch = options(channels, product_precision(x.dtype))
    rows = images * z.shape[2] * z.shape[3]
    read = {
        **located.arguments("p_maps"),
        "p_places": table(located.pairs(), x.device),
        "p_a": prologue.a.float().contiguous(),
        "p_b": prologue.b.float().contiguous(),
        "p_d": prologue.d.float().contiguous(),
        "p_x": x,
    }
    sizes = {"height": height, "width": width, "out_height": z.shape[2], "out_width": z.shape[3]}
    sizes |= {"count": count, "rows": rows, "channels": channels}
    grad, partial = torch.empty_like(x), None
    with torch.cuda.device_of(x):
        reduction_error_kernel[grid(1, rows, channels, launch)](
            p_grad=grad,
            p_first=feedback.first.contiguous(),
            p_second=feedback.second.contiguous(),
            **read,
            **sizes,
            **launch,
        )
        if weight_grads:
            halves = 2 * triton.cdiv(feedback.first.shape[1], launch["BLOCK_O"])
            parts = halves * triton.cdiv(channels, launch["BLOCK_C"])
            most = max(1, WEIGHT_PROGRAMS // (count * parts))
            programs = min(most, triton.cdiv(rows, launch["BLOCK_R"]))
            partial = x.new_empty(programs, count * channels * channels, dtype=torch.float32)
            reduction_weight_kernel[count, len(partial), parts](p_weight_grad=partial, **read, **sizes, **launch)
    return PartialGradients(grad, partial)


def supports(x: Tensor) -> bool:
    """Whether the kernels support this case; otherwise the reference runs."""
    return fits(x, DTYPES) and x.numel() > 0
