"""Batch normalisation over the batches of several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.errors import InputError
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
        self._move_on(mean.detach(), var.detach() * count / max(count - 1, 1))
        scale = (var + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _move_on(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        return torch.stack(batch_norm.total(*sums))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.stack(batch_norm.total(*grad))


def share_statistics(network: nn.Module) -> None:
    """Let every ``nn.BatchNorm2d`` of a network take the statistics of all processes that have joined.

    Raises:
        InputError: several have, and a layer of the network learns in one process only.
    """
    if batch_norm.shared() and any(hasattr(module, "plasticity") for module in network.modules()):
        raise InputError("Hebbian layers learn in one process only; leave them out, or torchrun")
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
