"""The specification of the 3×3 pools in plain PyTorch: maximum and average, padding 1, excluding the padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..maps import precise
from ..records import Sums


def forward(x: Tensor, stride: int) -> tuple[Tensor, Sums]:
    """Compute both pools of x [N, H, W, C].

    Returns:
        z [2, N, ⌈H/stride⌉, ⌈W/stride⌉, C], the maximum and then the average, whose divisor excludes the padding; and
        the sums of z before it is rounded to the dtype of x, see :mod:`..maps`.
    """
    image = x.permute(0, 3, 1, 2).contiguous().to(precise(x.dtype))
    pools = (
        F.max_pool2d(image, 3, stride, padding=1),
        F.avg_pool2d(image, 3, stride, padding=1, count_include_pad=False),
    )
    z = torch.stack([pool.permute(0, 2, 3, 1) for pool in pools]).contiguous()
    wide = z.double()
    return z.to(x.dtype), Sums(wide.sum(dim=(1, 2, 3)), wide.square().sum(dim=(1, 2, 3)))


def backward(grads: Sequence[Tensor], x: Tensor, stride: int) -> Tensor:
    """Compute the gradient of x from those of the pools, [N, H_out, W_out, C]; among equal maxima the first gets it."""
    given = (x.to(precise(x.dtype)), *grads)
    image, of_maximum, of_average = (t.permute(0, 3, 1, 2).contiguous() for t in given)
    _, index = F.max_pool2d(image, 3, stride, padding=1, return_indices=True)
    # The ops that autograd would call: torch.compile can trace these, but not autograd within a backward pass.
    window = [3, 3], [stride, stride], [1, 1]
    down = torch.ops.aten.max_pool2d_with_indices_backward(of_maximum, image, *window, [1, 1], False, index)
    down += torch.ops.aten.avg_pool2d_backward(of_average, image, *window, False, False, None)
    return down.permute(0, 2, 3, 1).contiguous()
