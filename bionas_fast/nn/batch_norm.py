"""Batch normalisation with statistics synchronised over processes."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from bionas_fast.errors import InputError
from bionas_fast.kernels import batch_norm
from bionas_fast.kernels.batch_norm import Synchroniser
from bionas_fast.nn import repeats
from bionas_fast.nn.leaf import leaf
from bionas_fast.nn.plain import become


class Synchronised(nn.Module):
    """A module that normalises batches.

    Attributes:
        synchroniser: sums the statistics over processes in training; None for those of this process alone.
    """

    synchroniser: Synchroniser | None = None


class _Statistics(NamedTuple):
    """The state that a pass through a batch normalisation reads."""

    training: bool
    mean: Tensor | None
    var: Tensor | None

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> _Statistics:
        return cls(layer.training, layer.running_mean, layer.running_var)

    def copy(self) -> _Statistics:
        """Return a copy that later passes do not change."""
        mean, var = (None if own is None else own.clone() for own in (self.mean, self.var))
        return _Statistics(self.training, mean, var)

    def normalise(self, layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
        """Repeat a pass: normalise as it did; no statistics change."""
        of_batch = self.training or self.mean is None
        # The statistics are passed in training, too: checkpointing expects a repeat to save the same tensors.
        return F.batch_norm(x, self.mean, self.var, layer.weight, layer.bias, of_batch, 0.0, layer.eps)


def normalise(layer: nn.BatchNorm2d | None, x: Tensor) -> Tensor:
    """Run a batch normalisation that is part of another layer; a repeat by gradient checkpointing moves no statistics.

    Args:
        layer: None for the identity.
    """
    if layer is None:
        return x
    now = repeats.current()
    if now is None:
        return layer(x)
    seen = now.once(layer, partial(_Statistics.of, layer), _Statistics.copy)
    return seen.normalise(layer, x) if now.repeated else layer(x)


class SyncedBatchNorm2d(Synchronised, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with statistics synchronised over processes in training.

    Unlike ``nn.SyncBatchNorm`` it also works on the CPU. Without a synchroniser it is equivalent to ``nn.BatchNorm2d``.
    """

    @classmethod
    def of(cls, layer: nn.BatchNorm2d, synchroniser: Synchroniser) -> SyncedBatchNorm2d:
        """Build a layer with the parameters and buffers of another one."""
        synced = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        synced.weight, synced.bias = layer.weight, layer.bias
        synced.running_mean, synced.running_var = layer.running_mean, layer.running_var
        synced.num_batches_tracked = layer.num_batches_tracked
        synced.synchroniser = synchroniser
        return synced.train(layer.training)

    def to_torch(self) -> nn.Module:
        """Become ``nn.BatchNorm2d``; return it."""
        self.__dict__.pop("synchroniser", None)
        return become(self, nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, H, W]; the shape must be the same in every process."""
        if isinstance(x, Proxy):
            return leaf(self, x)
        now = repeats.current()
        seen = _Statistics.of(self) if now is None else now.once(self, partial(_Statistics.of, self), _Statistics.copy)
        moves = now is None or not now.repeated
        if not seen.training or self.synchroniser is None:
            return super().forward(x) if moves else seen.normalise(self, x)
        wide = x.double()
        sums = _Total.apply(torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))]), self.synchroniser)
        count = batch_norm.all_positions(x.numel() // x.shape[1], self.synchroniser)
        mean = sums[0] / count
        var = (sums[1] / count - mean.square()).clamp(min=0)
        if moves:
            self._update(mean.detach(), var.detach() * count / max(count - 1, 1))
        scale = (var + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, synchroniser: Synchroniser) -> Tensor:
        ctx.synchroniser = synchroniser
        return _total(sums, synchroniser)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _total(grad, ctx.synchroniser), None


def _total(sums: Tensor, synchroniser: Synchroniser) -> Tensor:
    total = sums.clone(memory_format=torch.contiguous_format)
    synchroniser.sum_in_place(total)
    return total


def synchronise_statistics(network: nn.Module, synchroniser: Synchroniser | None) -> None:
    """Synchronise the statistics of every batch normalisation of a network over all processes.

    Args:
        network: its ``nn.BatchNorm2d`` layers are replaced by layers with the same parameters and buffers.
        synchroniser: sums over the processes; None leaves the network unchanged.

    Raises:
        InputError: the network contains a layer that supports a single process only.
    """
    if synchroniser is None:
        return
    if any(hasattr(module, "plasticity") for module in network.modules()):
        raise InputError("Hebbian layers learn in one process only; leave them out, or torchrun")
    for module in [*network.modules()]:
        if isinstance(module, Synchronised):
            module.synchroniser = synchroniser
        for name, layer in module.named_children():
            if type(layer) is nn.BatchNorm2d:
                setattr(module, name, SyncedBatchNorm2d.of(layer, synchroniser))
