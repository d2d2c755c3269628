"""Learning by forward passes only: PEPITA and the forward-forward algorithm. No error passes from layer to layer.

Both set the gradients of the weights, with which any optimiser steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.models import ForwardForwardNetwork
from bionas_fast.runtime import distributed


class _Pass(NamedTuple):
    """A forward pass: the weighted sums of every layer with weights, and their activities; the last are the logits."""

    sums: list[Tensor]
    activities: list[Tensor]


def modulation(pixels: int, num_classes: int, scale: float, seed: int) -> Tensor:
    """Draw F of PEPITA, [pixels, num_classes], from U(-s, s), s = scale · √(6 / pixels), on the CPU."""
    uniform = torch.rand(pixels, num_classes, generator=torch.Generator().manual_seed(seed))
    return (2 * uniform - 1) * scale * math.sqrt(6 / pixels)


def pepita(
    network: nn.Sequential, matrix: Tensor, images: Tensor, labels: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Add the changes of PEPITA to the gradients of a network's weights (Dellaferrera & Kreiman 2022).

    With the error e = softmax - onehot at the logits of a first pass, a second pass runs on x̃ = x + F e. The gradient
    of W_l is (h_l - h̃_l) ⊗ h̃_{l-1}, that of the last layer ẽ ⊗ h̃, means over the batch. h and h̃ are activities after
    the nonlinearity in the first and in the second pass, h̃_0 = x̃, and ẽ is the error at the logits of the second.

    Args:
        network: layers with weights, nonlinearities and pools, in a sequence.
        matrix: F, [pixels, classes]; see :func:`modulation`.
        images: x, [N, C, H, W].
        labels: int64 [N].
        share: factor of the gradients.

    Returns:
        The cross-entropy of the first pass, a scalar, and its logits [N, classes].
    """
    with torch.no_grad():
        first = _run(network, images)
        logits = first.activities[-1]
        onehot = F.one_hot(labels, logits.shape[1])
        error = logits.softmax(dim=1) - onehot
        modulated = images + (error @ matrix.t()).view_as(images)
    second = _run(network, modulated)
    with torch.no_grad():
        signals = [h - other for h, other in zip(first.activities[:-1], second.activities[:-1], strict=True)]
        signals.append(second.activities[-1].softmax(dim=1) - onehot)
        signals = [share / len(labels) * signal for signal in signals]
    # The inputs of the layers are detached: what each sum receives changes the weights of its own layer only.
    torch.autograd.backward(second.sums, signals)
    return F.cross_entropy(logits, labels), logits


def _run(network: nn.Sequential, x: Tensor) -> _Pass:
    sums: list[Tensor] = []
    activities: list[Tensor] = []
    for module in network:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            x = module(x.detach())
            sums.append(x)
            activities.append(x)
        elif isinstance(module, nn.ReLU):
            activities[-1] = x = module(x)
        else:
            x = module(x)
    return _Pass(sums, activities)


def forward_forward(
    network: ForwardForwardNetwork, images: Tensor, labels: Tensor, threshold: float, share: float
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the forward-forward algorithm to those of a network's weights (Hinton 2022).

    The loss of each layer is the mean of softplus(θ - g⁺) + softplus(g⁻ - θ), with its goodness g⁺ for the image with
    its label and g⁻ with another class. Other classes are drawn with the probabilities that the network gives them.

    Args:
        network: see :class:`bionas_fast.models.ForwardForwardNetwork`.
        images: [N, C, H, W].
        labels: int64 [N].
        threshold: θ.
        share: factor of the gradients.

    Returns:
        The mean loss of the layers, a scalar, and the goodness with each class [N, classes].
    """
    with torch.no_grad():
        logits = network(images)
        others = draw_others(logits, labels)
    layers = goodness_losses(network, images, labels, others, threshold)
    loss = torch.stack(layers).sum()
    (share * loss).backward()
    return loss.detach() / len(layers), logits


def draw_others(logits: Tensor, labels: Tensor) -> Tensor:
    """Draw a class other than the label for each image, int64 [N], with the probabilities softmax(logits)."""
    others = logits.double().scatter(1, labels[:, None], -torch.inf)
    chances = others.softmax(dim=1).cumsum(dim=1)
    uniform = distributed.shard_of_draw(lambda n: torch.rand(n, 1, device=logits.device), len(labels))
    drawn = (chances < uniform * chances[:, -1:]).sum(dim=1).clamp_max(logits.shape[1] - 1)
    return torch.where(drawn == labels, others.argmax(dim=1), drawn)


def goodness_losses(
    network: ForwardForwardNetwork, images: Tensor, labels: Tensor, others: Tensor, threshold: float
) -> list[Tensor]:
    """Compute the loss of each layer, scalars, for labels and other classes, int64 [N] each."""
    both = network.goodness(torch.cat([images, images]), torch.cat([labels, others]), local=True)
    halves = (own.chunk(2) for own in both)
    return [F.softplus(threshold - fits).mean() + F.softplus(misfits - threshold).mean() for fits, misfits in halves]
