"""Batch normalisation over the batches of several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.kernels import batch_norm


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose statistics in training are those of all processes that have joined.

    Unlike ``nn.SyncBatchNorm`` it works on the CPU, too. Alone it is the ordinary one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], as many positions in every process → the same shape."""
        if not (self.training and batch_norm.shared()):
            return super().forward(x)
        wide = x.double()
        sums = _Total.apply(torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))]))
        count = batch_norm.all_positions(x.numel() // x.shape[1])
        mean = sums[0] / count
        var = (sums[1] / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * count / max(count - 1, 1)).to(self.running_var), self.momentum)
            self.num_batches_tracked += 1
        scale = (var + self.eps).rsqrt()
        scale, shift = scale, -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        return torch.stack(batch_norm.total(*sums))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.stack(batch_norm.total(*grad))


def share_statistics(network: nn.Module) -> None:
    """Let every ``nn.BatchNorm2d`` of a network take the statistics of all processes that have joined."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
