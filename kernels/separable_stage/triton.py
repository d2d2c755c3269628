"""Separable stages in Triton: :mod:`.reference` specifies them.

Forward, one kernel computes the depthwise output block by block and multiplies it by the pointwise weight where it
stands, in registers. Backward, the error below the pointwise feedback is written down once, for every position of it is
read by all taps of the transposed depthwise convolution; the depthwise output is computed again. All branches of a
stage share each launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ..launching import addresses, fits, grid, table
from . import reference
from .triton_kernels import (
    DTYPES,
    STRIDES,
    TAPS,
    configurations,
    error_kernel,
    input_kernel,
    input_options,
    product_options,
    stage_kernel,
    weight_gradient_kernel,
    weight_options,
)

__all__ = ["backward", "configurations", "forward"]

#: Programs that sum up weight gradients: some for every multiprocessor, few enough that what they leave stays small.
WEIGHT_PROGRAMS = 2048


def forward(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    kernels: Sequence[int],
    dilations: Sequence[int],
    stride: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """z [K, N, H_out, W_out, C], Σ z and Σ z², float64 [K, C]; arguments as in :func:`.reference.forward`."""
    if not _fits(x, kernels, stride):
        return reference.forward(x, depthwise, pointwise, kernels, dilations, stride, scale, shift)
    branches, outputs, inputs = pointwise.shape
    images, height, width = x.shape[-4:-1]
    size = (triton.cdiv(height, stride), triton.cdiv(width, stride))
    z = x.new_empty(branches, images, *size, outputs)
    rows = z[0, ..., 0].numel()
    options = product_options(max(inputs, outputs))
    sums = x.new_empty(2, branches, triton.cdiv(rows, options["BLOCK_R"]), outputs, dtype=torch.float32)
    with torch.cuda.device_of(x):
        stage_kernel[grid(branches, rows, outputs, options)](
            z, sums, x.contiguous(), depthwise.contiguous(), pointwise.contiguous(),
            *_affine(scale, shift, pointwise), _branches(kernels, dilations, inputs, x.device),
            branches, rows, inputs, outputs, height, width, *size, stride, images if x.dim() == 5 else 0, **options,
        )  # fmt: skip
    total, squares = sums.sum(dim=2, dtype=torch.float64)
    return z, total, squares


def backward(
    grads: Sequence[Tensor],
    grad_index: Sequence[int],
    z: Tensor,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    depthwise_feedback: Tensor,
    pointwise_feedback: Tensor,
    kernels: Sequence[int],
    dilations: Sequence[int],
    stride: int,
    scale: Tensor | None,
    shift: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The error and the weight gradients of all branches; arguments and results as in :func:`.reference.backward`."""
    if not _fits(x, kernels, stride):
        return reference.backward(
            grads, grad_index, z, a, b, d, x, depthwise, pointwise, depthwise_feedback, pointwise_feedback,
            kernels, dilations, stride, scale, shift, weights,
        )  # fmt: skip
    x, z = x.contiguous(), z.contiguous()
    branches, outputs, inputs = pointwise.shape
    images, height, width = x.shape[-4:-1]
    own, size = x.dim() == 5, z.shape[2:4]
    rows = z[0, ..., 0].numel()
    stacks, places = addresses(grads, z.dtype)
    delta = (table([[places[i]] for i in grad_index], x.device), z, *(t.float().contiguous() for t in (a, b, d)))
    affine, geometry = _affine(scale, shift, pointwise), _branches(kernels, dilations, inputs, x.device)
    options = product_options(max(inputs, outputs))
    error, none = z.new_empty(branches, rows, inputs), x.new_empty(0)
    depthwise_grad = pointwise_grad = none
    with torch.cuda.device_of(x):
        error_kernel[grid(branches, rows, inputs, options)](
            error, *delta, pointwise_feedback.contiguous(), branches, rows, inputs, outputs, **options
        )
        if weights:
            pairs = triton.cdiv(inputs, options["BLOCK_C"]) * triton.cdiv(outputs, options["BLOCK_C"])
            programs = max(1, min(triton.cdiv(rows, options["BLOCK_R"]), WEIGHT_PROGRAMS // (branches * pairs)))
            depthwise_grad = x.new_empty(programs, depthwise.numel(), dtype=torch.float32)
            pointwise_grad = x.new_empty(programs, *pointwise.shape, dtype=torch.float32)
            weight_gradient_kernel[branches, programs, pairs](
                depthwise_grad, pointwise_grad, error, *delta, x, depthwise.contiguous(), *affine, geometry,
                rows, inputs, outputs, height, width, *size, stride, images if own else 0, depthwise.numel(),
                **weight_options(max(inputs, outputs)),
            )  # fmt: skip
            depthwise_grad = depthwise_grad.sum(dim=0).to(depthwise.dtype)
            pointwise_grad = pointwise_grad.sum(dim=0).to(pointwise.dtype)
        del stacks  # read until here
        grad = torch.empty_like(x)
        count, rows, options = branches if own else 1, images * height * width, input_options(stride)
        sums = x.new_empty(2, count, triton.cdiv(rows, options["BLOCK_R"]), inputs, dtype=torch.float32)
        input_kernel[grid(count, rows, inputs, options)](
            grad, sums, x, error, depthwise_feedback.contiguous(), *affine, geometry, count, rows, inputs,
            height, width, *size, branches // count, **options,
        )  # fmt: skip
    total, products = sums.sum(dim=2, dtype=torch.float64) if own else (none.double(), none.double())
    return grad, total, products, depthwise_grad, pointwise_grad


def _fits(x: Tensor, kernels: Sequence[int], stride: int) -> bool:
    """Whether the kernels are made for this; what is not runs as the reference."""
    return fits(x, DTYPES) and stride in STRIDES and max(kernels) ** 2 <= TAPS


def _affine(scale: Tensor | None, shift: Tensor | None, pointwise: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, float32 [K, C]; where there is none, those that change nothing."""
    if scale is not None and shift is not None:
        return scale.float().contiguous(), shift.float().contiguous()
    shape = (pointwise.shape[0], pointwise.shape[2])
    return pointwise.new_ones(shape, dtype=torch.float32), pointwise.new_zeros(shape, dtype=torch.float32)


def _branches(kernels: Sequence[int], dilations: Sequence[int], channels: int, device: torch.device) -> Tensor:
    starts = accumulate((channels * kernel * kernel for kernel in kernels[:-1]), initial=0)
    return table([*zip(kernels, dilations, starts, strict=True)], device)
