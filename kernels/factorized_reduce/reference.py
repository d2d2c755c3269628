"""The specification of factorized reductions of one input in plain PyTorch, by batched matrix products.

Reduction r multiplies the positions (0, 0), (0, 2), … of ReLU(x) by its first matrix and the positions at offset (1, 1)
from these by its second, and concatenates the results. For odd sizes the second grid is zero-padded at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..records import Prologue, ReductionWeights, Sums


def _grids(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Extract the two grids, [P, C] each, of ReLU(x), x [N, H, W, C]."""
    x = x.to(dtype)
    shifted = F.pad(x[:, 1::2, 1::2], (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    first, second = (F.relu(grid).reshape(-1, x.shape[-1]) for grid in (x[:, ::2, ::2], shifted))
    return first, second


def forward(x: Tensor, weights: ReductionWeights) -> tuple[Tensor, Sums]:
    """Compute all reductions of x [N, H, W, C].

    Returns:
        z [R, N, ⌈H/2⌉, ⌈W/2⌉, C] in the dtype of x, and the sums of z before it is rounded, see :mod:`..maps`.
    """
    images, height, width, channels = x.shape
    grids = _grids(x, weights.first.dtype)
    z = grids[0].new_empty(weights.first.shape[0], grids[0].shape[0], channels)
    halves = z.split([weight.shape[1] for weight in weights], dim=-1)
    for part, grid, weight in zip(halves, grids, weights, strict=True):
        part.copy_(grid @ weight.transpose(1, 2))
    wide = z.double()
    sums = Sums(wide.sum(dim=1), wide.square().sum(dim=1))
    return z.view(len(z), images, -(-height // 2), -(-width // 2), channels).to(x.dtype), sums


def backward(
    prologue: Prologue, x: Tensor, weights: ReductionWeights, feedback: ReductionWeights, weight_grads: bool
) -> tuple[Tensor, ReductionWeights]:
    """Compute the error at x through the feedback of the two matrices, and the exact weight gradients.

    Args:
        prologue: the gradient of z.
        feedback: shaped like ``weights``.
        weight_grads: whether weight gradients are requested; empty tensors otherwise.
    """
    dtype = weights.first.dtype
    grids = _grids(x, dtype)
    deltas = prologue.deltas().to(dtype).flatten(1, 3)  # [R, P, C]
    down = grids[0].new_zeros(x.shape[0], x.shape[1] + x.shape[1] % 2, x.shape[2] + x.shape[2] % 2, x.shape[3])
    grads = []
    begin = 0
    for offset, (grid, matrix) in enumerate(zip(grids, feedback, strict=True)):
        delta = deltas[:, :, begin : begin + matrix.shape[1]].transpose(0, 1).flatten(1)  # [P, R · columns]
        begin += matrix.shape[1]
        place = down[:, offset::2, offset::2]
        place.copy_((delta @ matrix.flatten(0, 1)).mul_(grid > 0).view(place.shape))
        grads.append((delta.T @ grid).view(matrix.shape) if weight_grads else x.new_empty(0))
    return down[:, : x.shape[1], : x.shape[2]], ReductionWeights(*grads)
