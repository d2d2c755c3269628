"""Weight mirrors: feedback that learns from noise, in pauses of the training (Akrout et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from bionas_fast.errors import InputError, expect_type
from bionas_fast.nn.error_path import ErrorPath, Mirrored
from bionas_fast.ops.feedback import draws


@torch.no_grad()
def mirror(
    model: nn.Module,
    steps: int = 200,
    *,
    rate: float = 0.02,
    noise: float = 1.0,
    decay: float | None = None,
    samples: int = 64,
) -> nn.Module:
    """Let the layers under the rule ``wm`` learn their feedback from noise, without data and without an error.

    In every step each layer gets white noise ξ ~ N(0, noise²) as input and answers y = Wξ, without its bias. Then
    B ← B + rate · y ⊗ ξ − decay · B, with the mean over the samples, so that the expectation of rate · y ⊗ ξ is
    rate · noise² · W. The noise follows from the layers' seeds: it is the same on every device and in every process.

    Args:
        model: any module; call this between epochs, not between the forward and backward pass of a step.
        steps: the number of steps.
        rate: η_m.
        noise: σ, the standard deviation of the noise.
        decay: λ; by default rate · noise², with which B approaches W itself.
        samples: the number of inputs in a step.

    Returns:
        ``model``.

    Raises:
        InputError: a number out of range.
    """
    expect_type("model", model, nn.Module)
    for name, value, least in (("steps", steps, 0), ("samples", samples, 1)):
        if value < least:
            raise InputError(f"{name}: expected at least {least}, got {value}")
    for name, own in (("rate", rate), ("noise", noise)):
        if own <= 0:
            raise InputError(f"{name}: expected a number above 0, got {own}")
    decay = rate * noise**2 if decay is None else decay
    for layer in _layers(model):
        for _ in range(steps):
            weight, feedback = (own.movedim(layer.filters, 0) for own in (layer.weight, layer.feedback))
            flat = weight.flatten(1)
            xi = noise * _normal((samples, flat.shape[1]), layer.stream).to(flat.dtype)
            learned = (xi @ flat.t()).t() @ xi / samples
            feedback.mul_(1 - decay).add_(learned.view_as(feedback), alpha=rate)
            layer.stream[1].add_(1)
    return model


class Pauses(Protocol):
    """The settings of the pauses; see :class:`bionas_fast.config.DescentConfig`."""

    @property
    def mirror_every(self) -> int: ...
    @property
    def mirror_steps(self) -> int: ...


def mirror_between_epochs(model: nn.Module, settings: Pauses, epoch: int) -> None:
    """Mirror the weights of a model before an epoch, counted from 0, if its settings ask for it."""
    if settings.mirror_every and epoch % settings.mirror_every == 0:
        mirror(model, settings.mirror_steps)


def _layers(model: nn.Module) -> Iterator[Mirrored]:
    for module in model.modules():
        if isinstance(module, ErrorPath):
            yield from module.mirrored()


def _normal(shape: tuple[int, ...], stream: Tensor) -> Tensor:
    """Draw from N(0, 1) by the method of Box & Muller (1958)."""
    u, v = draws.uniform((2, *shape), stream).double()
    return (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)
