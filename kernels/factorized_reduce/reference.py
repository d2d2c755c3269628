"""Factorized reductions of one input in plain PyTorch, forward and backward: a few matrix products for all of them.

Reduction r takes the positions (0, 0), (0, 2), … of ReLU(x) through its first matrix, those one further down and right
through its second one, and puts the results side by side. On odd sizes the second grid has zeros at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _grids(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two grids, [P, C_in] each, of x [N, H, W, C_in]."""
    shifted = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))[:, 1::2, 1::2]
    return x[:, ::2, ::2].reshape(-1, x.shape[-1]), shifted.reshape(-1, x.shape[-1])


def forward(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """All reductions of x [N, H, W, C].

    Args:
        first, second: [R, C₁, C] and [R, C₂, C], C₁ + C₂ = C.

    Returns:
        z [R, N, ⌈H/2⌉, ⌈W/2⌉, C].
    """
    images, height, width, channels = x.shape
    grids = _grids(F.relu(x))
    z = x.new_empty(first.shape[0], grids[0].shape[0], channels)
    for part, grid, weight in zip(
        z.split([first.shape[1], second.shape[1]], dim=-1), grids, (first, second), strict=True
    ):
        torch.bmm(grid.expand(len(z), *grid.shape), weight.transpose(1, 2), out=part)
    return z.view(-1, images, -(-height // 2), -(-width // 2), channels)


def backward(
    grads: Sequence[Tensor],
    x: Tensor,
    first: Tensor,
    second: Tensor,
    feedback: tuple[Tensor, Tensor],
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The error at x through the feedback of the two matrices, and the weights' exact gradients.

    Args:
        grads: of z, R tensors [N, H_out, W_out, C].
        feedback: shaped like ``first`` and ``second``.
        weights: whether weight gradients are wanted; empty tensors otherwise.
    """
    grids = _grids(F.relu(x))
    down = x.new_zeros(x.shape[0], x.shape[1] + x.shape[1] % 2, x.shape[2] + x.shape[2] % 2, x.shape[3])
    weight_grads = []
    begin = 0
    for offset, (grid, b) in enumerate(zip(grids, feedback, strict=True)):
        parts = [grad.flatten(0, 2)[:, begin : begin + b.shape[1]] for grad in grads]
        begin += b.shape[1]
        below = torch.zeros_like(grid)
        for part, matrix in zip(parts, b, strict=True):
            below.addmm_(part, matrix)
        place = down[:, offset::2, offset::2]
        place.copy_(below.view(place.shape))
        weight_grads.append(torch.stack([part.T @ grid for part in parts]) if weights else x.new_empty(0))
    return down[:, : x.shape[1], : x.shape[2]] * (x > 0), *weight_grads
