"""The 3×3 pools in Triton: :mod:`.reference` specifies them. One launch each way, and nothing is kept in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..launching import fits, grid
from . import reference
from .triton_kernels import (
    DTYPES,
    STRIDES,
    backward_options,
    configurations,
    options,
    pools_backward_kernel,
    pools_kernel,
)

__all__ = ["backward", "configurations", "forward"]


def forward(x: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both pools of x [N, H, W, C] as in :func:`.reference.forward`: z, Σ z and Σ z²."""
    if not _fits(x, stride):
        return reference.forward(x, stride)
    images, height, width, channels = x.shape
    size = (triton.cdiv(height, stride), triton.cdiv(width, stride))
    rows, launch = images * size[0] * size[1], options()
    z = x.new_empty(2, images, *size, channels)
    sums = x.new_empty(2, 2, triton.cdiv(rows, launch["BLOCK_R"]), channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        pools_kernel[grid(1, rows, channels, launch)](
            z, sums, x.contiguous(), rows, channels, height, width, *size, stride, **launch
        )
    total, squares = sums.sum(dim=2, dtype=torch.float64)
    return z, total, squares


def backward(grads: Sequence[Tensor], x: Tensor, stride: int) -> Tensor:
    """The gradient of x from those of the two pools, [N, H_out, W_out, C]; as :func:`.reference.backward`."""
    if not _fits(x, stride):
        return reference.backward(grads, x, stride)
    images, height, width, channels = x.shape
    rows, launch = images * height * width, backward_options(stride)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(x):
        pools_backward_kernel[grid(1, rows, channels, launch)](
            out, *(grad.contiguous() for grad in grads), x.contiguous(), rows, channels, height, width,
            *grads[0].shape[1:3], **launch,
        )  # fmt: skip
    return out


def _fits(x: Tensor, stride: int) -> bool:
    """Whether the kernels are made for this; what is not runs as the reference."""
    return fits(x, DTYPES) and stride in STRIDES
