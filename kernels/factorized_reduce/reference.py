"""The specification of factorized reductions of one input in plain PyTorch: a few matrix products for all of them.

Reduction r takes the positions (0, 0), (0, 2), … of ReLU(x) through its first matrix, those one further down and right
through its second one, and puts the results side by side. On odd sizes the second grid has zeros at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _grids(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two grids, [P, C] each, of ReLU(x [N, H, W, C])."""
    shifted = F.pad(x[:, 1::2, 1::2], (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return tuple(F.relu(grid).reshape(-1, x.shape[-1]) for grid in (x[:, ::2, ::2], shifted))


def forward(x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All reductions of x [N, H, W, C].

    Args:
        first, second: [R, C₁, C] and [R, C₂, C], C₁ + C₂ = C.

    Returns:
        z [R, N, ⌈H/2⌉, ⌈W/2⌉, C]; Σ z and Σ z² over positions, float64 [R, C].
    """
    images, height, width, channels = x.shape
    grids = _grids(x)
    z = x.new_empty(first.shape[0], grids[0].shape[0], channels)
    for part, grid, weight in zip(
        z.split([first.shape[1], second.shape[1]], dim=-1), grids, (first, second), strict=True
    ):
        part.copy_(grid @ weight.transpose(1, 2))
    wide = z.double()
    total, squares = wide.sum(dim=1), wide.square().sum(dim=1)
    return z.view(len(z), images, -(-height // 2), -(-width // 2), channels), total, squares


def backward(
    grads: Sequence[Tensor],
    edges: Sequence[int],
    z: Tensor,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    first_feedback: Tensor,
    second_feedback: Tensor,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The error at x through the feedback of the two matrices, and the weights' exact gradients.

    The gradient of z[r] is a[r] · grads[edges[r]] + b[r] · z[r] + d[r].

    Args:
        grads: [N, H_out, W_out, C] each.
        edges: for each reduction the gradient it reads; several may share one.
        a, b, d: [R, C].
        first_feedback, second_feedback: shaped like ``first`` and ``second``.
        weights: whether weight gradients are wanted; empty tensors otherwise.
    """
    grids = _grids(x)
    deltas = [(a[r] * grads[e] + b[r] * z[r] + d[r]).flatten(0, 2) for r, e in enumerate(edges)]
    down = x.new_zeros(x.shape[0], x.shape[1] + x.shape[1] % 2, x.shape[2] + x.shape[2] % 2, x.shape[3])
    weight_grads = []
    begin = 0
    for offset, (grid, feedback) in enumerate(zip(grids, (first_feedback, second_feedback), strict=True)):
        delta = torch.cat([one[:, begin : begin + feedback.shape[1]] for one in deltas], dim=1)
        begin += feedback.shape[1]
        place = down[:, offset::2, offset::2]
        place.copy_((delta @ feedback.flatten(0, 1)).mul_(grid > 0).view(place.shape))
        weight_grads.append((delta.T @ grid).view(feedback.shape) if weights else x.new_empty(0))
    return down[:, : x.shape[1], : x.shape[2]], *weight_grads
