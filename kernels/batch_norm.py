"""Batch normalisation without affine parameters, in terms of sums over positions. All tensors are float64 [K, C].

Statistics are those of this process or, with a synchroniser, of all processes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .records import Moments, Running, Sums

EPSILON = 1e-5


class Synchroniser(Protocol):
    """Sums tensors over processes, all of which must make the same calls."""

    @property
    def world_size(self) -> int:
        """The number of processes."""

    def sum_in_place(self, tensor: Tensor) -> None:
        """Set a tensor to its sum over the processes."""


def total(first: Tensor, second: Tensor, synchroniser: Synchroniser | None) -> tuple[Tensor, Tensor]:
    """Sum two sums over positions over all processes."""
    if synchroniser is None:
        return first, second
    stacked = torch.stack([first, second])
    synchroniser.sum_in_place(stacked)
    return stacked[0], stacked[1]


def all_positions(positions: int, synchroniser: Synchroniser | None) -> int:
    """Compute the number of positions of all processes, at least 1; without positions, all sums are 0."""
    return max(positions * (1 if synchroniser is None else synchroniser.world_size), 1)


def moments(sums: Sums, positions: int, synchroniser: Synchroniser | None = None) -> Moments:
    """Compute mean and biased variance from the sums over ``positions`` positions per process."""
    total_, squares = total(*sums.whole(), synchroniser)
    positions = all_positions(positions, synchroniser)
    mean = total_ / positions
    return Moments(mean, (squares / positions - mean.square()).clamp_(min=0))


def update(running: Running | None, moments: Moments, positions: int, synchroniser: Synchroniser | None = None) -> None:
    """Move running statistics towards the moments of a batch, which may have more channels."""
    if running is None or not positions:
        return
    positions = all_positions(positions, synchroniser)
    unbiased = moments.var * (positions / max(positions - 1, 1))
    for own, value in ((running.mean, moments.mean), (running.var, unbiased)):
        own.lerp_(value[:, : own.shape[1]].to(own.dtype), running.momentum)


def rstd(var: Tensor) -> Tensor:
    """Compute 1 / √(var + ε)."""
    return (var + EPSILON).rsqrt()


def backward(
    mean: Tensor,
    rstd: Tensor,
    grad_sum: Tensor,
    normalised: Tensor,
    positions: int,
    training: bool,
    synchroniser: Synchroniser | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute b, d such that the gradient of z is rstd · (gradient of ẑ) + b · z + d.

    Args:
        grad_sum, normalised: Σ of the gradient of ẑ, and Σ of its product with ẑ.
        positions: the number of positions in this process.
        training: whether mean and variance are those of the batch; otherwise b and d are 0.
    """
    if not training:
        return torch.zeros_like(rstd), torch.zeros_like(rstd)
    grad_sum, normalised = total(grad_sum, normalised, synchroniser)
    positions = all_positions(positions, synchroniser)
    slope = rstd.square() * normalised / positions
    return -slope, slope * mean - rstd * grad_sum / positions
