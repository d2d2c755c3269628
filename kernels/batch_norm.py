"""Batch normalisation without affine parameters, in sums over positions. Everything is float64, [K, C]."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5


def moments(total: Tensor, squares: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance from Σ z and Σ z²."""
    mean = total / positions
    return mean, (squares / positions - mean.square()).clamp_(min=0)


def rstd(var: Tensor) -> Tensor:
    """1 / √(var + ε)."""
    return (var + EPSILON).rsqrt()


def backward(
    mean: Tensor, rstd: Tensor, grad_sum: Tensor, normalised: Tensor, positions: int, training: bool
) -> tuple[Tensor, Tensor]:
    """b, d such that the gradient of z is rstd · (gradient of ẑ) + b · z + d.

    Args:
        grad_sum, normalised: Σ of the gradient of ẑ, and Σ of its product with ẑ.
        training: whether mean and variance are those of the batch; else b and d are 0.
    """
    if not training:
        return torch.zeros_like(rstd), torch.zeros_like(rstd)
    slope = rstd.square() * normalised / positions
    return -slope, slope * mean - rstd * grad_sum / positions
