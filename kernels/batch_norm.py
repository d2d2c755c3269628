"""Batch normalisation without affine parameters, in sums over positions. Everything is float64, [K, C]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-5

_sum: Callable[[Tensor], None] | None = None
_processes = 1


def share(sum_in_place: Callable[[Tensor], None] | None, processes: int) -> None:
    """Take statistics over the batches of several processes from now on; None and 1 for this one's alone.

    Args:
        sum_in_place: adds up a tensor over the processes, each of which calls it the same number of times.
    """
    global _sum, _processes
    _sum, _processes = sum_in_place, processes


def shared() -> bool:
    """Whether statistics are those of several processes."""
    return _sum is not None


def total(*sums: Tensor) -> tuple[Tensor, ...]:
    """Sums over positions of all processes from those over its own."""
    if _sum is None:
        return sums
    stacked = torch.stack(sums)
    _sum(stacked)
    return stacked.unbind()


def all_positions(positions: int) -> int:
    """How many positions all processes have; 1 where there are none, whose sums are 0."""
    return max(positions * _processes, 1)


def moments(total_: Tensor, squares: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance from Σ z and Σ z²."""
    total_, squares = total(total_, squares)
    positions = all_positions(positions)
    mean = total_ / positions
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
    grad_sum, normalised = total(grad_sum, normalised)
    positions = all_positions(positions)
    slope = rstd.square() * normalised / positions
    return -slope, slope * mean - rstd * grad_sum / positions
