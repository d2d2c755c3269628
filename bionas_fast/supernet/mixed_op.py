"""The mixed op of one edge: its candidates, one module each, and the path that bypasses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bionas_fast.space import Candidate
from bionas_fast.space.operations import Zero
from bionas_fast.supernet.base import SearchCell


class MixedOp(nn.Module):
    """The weighted sum of all candidates of an edge, each with separate weights.

    Args:
        partial_channels: k; the first 1/k of the channels pass through the candidates. The others are scaled by the
            total weight of the edge, subsampled by max pooling, and shuffled with the first (PC-DARTS, section 3.1).
    """

    def __init__(
        self, candidates: tuple[Candidate, ...], channels: int, stride: int, partial_channels: int = 1
    ) -> None:
        super().__init__()
        self.channels, self.partial_channels = channels // partial_channels, partial_channels
        self.candidates = nn.ModuleList(c.build(self.channels, stride, searching=True) for c in candidates)
        self.bypass = bypass(stride)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute Σ_k weights[k] · candidate_k(x), [N, C, ⌈H/stride⌉, ⌈W/stride⌉], for x [N, C, H, W], weights [K]."""
        if self.partial_channels == 1:
            return self._sum(x, weights)
        passed = self._sum(x[:, : self.channels], weights)
        bypassed = weighted(weights.sum(), self.bypass(x[:, self.channels :]))
        return shuffle(torch.cat([passed, bypassed], dim=1), self.partial_channels)

    def _sum(self, x: Tensor, weights: Tensor) -> Tensor:
        live = [k for k, module in enumerate(self.candidates) if not isinstance(module, Zero)]
        total = weighted(weights[live[0]], self.candidates[live[0]](x))
        for k in live[1:]:
            total = total + weighted(weights[k], self.candidates[k](x))
        return total


def mixed_ops(cell: SearchCell) -> list[MixedOp]:
    """Build the mixed ops of a cell, one per edge."""
    channels, candidates = cell.shape.channels, cell.space.candidates
    return [MixedOp(candidates, channels, cell.stride(source), cell.partial_channels) for _, source in cell.space.edges]


def bypass(stride: int) -> nn.Module:
    """Build the path of the channels that bypass the candidates (PC-DARTS): identity, or max pooling at stride 2."""
    return nn.Identity() if stride == 1 else nn.MaxPool2d(stride, ceil_mode=True)


def weighted(weight: Tensor, x: Tensor) -> Tensor:
    """Multiply a tensor by a mixing weight, in the weight's precision at least.

    Under autocast x is narrower: a scalar would be rounded to its dtype, and so would its gradient, a long sum. The
    alphas start 0.1 % apart, less than the distance of two bfloat16 numbers.
    """
    return weight * x.to(torch.promote_types(weight.dtype, x.dtype))


def shuffle(x: Tensor, groups: int, dim: int = 1) -> Tensor:
    """Interleave the channels, along ``dim``, of all groups (channel shuffle; ShuffleNet, Zhang et al. 2018)."""
    return x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def add(total: Tensor | None, more: Tensor) -> Tensor:
    """Add to a running sum, which is None before the first term."""
    return more if total is None else total + more
