"""The two grids of pixels that a factorized reduction reads, after ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import functional as F

from bionas_fast import backends, torch_private


def rectified_grids(x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply ReLU to every second pixel in both directions, and to the pixels at offset (1, 1) from these.

    The gradient is written once; the gradients of slices would each allocate a zero tensor as large as x.

    Args:
        x: [N, C, H, W].

    Returns:
        Two tensors [N, C, ⌈H/2⌉, ⌈W/2⌉]; for odd sizes the second is zero-padded.
    """
    if isinstance(x, Proxy) or backends.recorded() or _is_transformed():
        shifted = F.pad(x, (0, 1, 0, 1))  # of the padding, even sizes read nothing
        return F.relu(x[:, :, ::2, ::2]), F.relu(shifted[:, :, 1::2, 1::2])
    return _RectifiedGrids.apply(x)


def _is_transformed() -> bool:
    """Whether a transform of torch.func is active; a compiler has transforms of its own."""
    return not torch.compiler.is_compiling() and torch_private.in_transform()


class _RectifiedGrids(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        first, second = F.relu(x[:, :, ::2, ::2]), F.relu(x[:, :, 1::2, 1::2])
        if height % 2 or width % 2:
            second = F.pad(second, (0, width % 2, 0, height % 2))
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.shape, ctx.memory_format = x.shape, torch.channels_last if last else torch.contiguous_format
        ctx.save_for_backward(first, second)
        return first, second

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        height, width = ctx.shape[-2:]
        first, second = (
            torch.ops.aten.threshold_backward(grad, seen, 0)
            for grad, seen in zip(grads, ctx.saved_tensors, strict=True)
        )
        grad = torch.empty(ctx.shape, dtype=first.dtype, device=first.device, memory_format=ctx.memory_format)
        grad[:, :, ::2, ::2] = first
        grad[:, :, 1::2, 1::2] = second[:, :, : height // 2, : width // 2]
        grad[:, :, ::2, 1::2] = 0
        grad[:, :, 1::2, ::2] = 0
        return grad
