"""The 3×3 pools in Triton, specified by :mod:`.reference`. One launch per pass; nothing is saved between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..launching import fits, grid
from ..records import Sums
from . import reference
from .triton_kernels import (
    DTYPES,
    STRIDES,
    backward_options,
    configurations,
    options,
    pooling_backward_kernel,
    pooling_kernel,
)

__all__ = ["backward", "configurations", "forward", "partial_forward"]


def forward(x: Tensor, stride: int) -> tuple[Tensor, Sums]:
    """Compute both pools of x [N, H, W, C] and their sums, see :func:`.reference.forward`."""
    z, sums = partial_forward(x, stride)
    return z, sums.whole()


def partial_forward(x: Tensor, stride: int) -> tuple[Tensor, Sums]:
    """Compute both pools of x [N, H, W, C] and, where the kernel runs, their sums over blocks of positions."""
    if not _fits(x, stride):
        return reference.forward(x, stride)
    images, height, width, channels = x.shape
    size = (triton.cdiv(height, stride), triton.cdiv(width, stride))
    rows, launch = images * size[0] * size[1], options()
    z = x.new_empty(2, images, *size, channels)
    sums = x.new_empty(2, 2, triton.cdiv(rows, launch["BLOCK_R"]), channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        pooling_kernel[grid(1, rows, channels, launch)](
            p_z=z,
            p_sums=sums,
            p_x=x.contiguous(),
            rows=rows,
            channels=channels,
            height=height,
            width=width,
            out_height=size[0],
            out_width=size[1],
            stride=stride,
            **launch,
        )
    return z, Sums(*sums.unbind())


def backward(grads: Sequence[Tensor], x: Tensor, stride: int) -> Tensor:
    """Compute the gradient of x from those of the pools, [N, H_out, W_out, C], see :func:`.reference.backward`."""
    if not _fits(x, stride):
        return reference.backward(grads, x, stride)
    of_maximum, of_average = grads
    images, height, width, channels = x.shape
    rows, launch = images * height * width, backward_options(stride)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(x):
        pooling_backward_kernel[grid(1, rows, channels, launch)](
            p_grad=out,
            p_grad_max=of_maximum.contiguous(),
            p_grad_average=of_average.contiguous(),
            p_x=x.contiguous(),
            rows=rows,
            channels=channels,
            height=height,
            width=width,
            out_height=of_maximum.shape[1],
            out_width=of_maximum.shape[2],
            **launch,
        )
    return out


def _fits(x: Tensor, stride: int) -> bool:
    """Whether the kernels support this case; otherwise the reference runs."""
    return fits(x, DTYPES) and stride in STRIDES
