"""Variance of gradients over batches, their noise scale, and their angle to the true gradient, layer by layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.analysis.layers import weight_layers
from bionas_fast.errors import InputError
from bionas_fast.nn.error_path import true_gradients
from bionas_fast.runtime.isolation import exclusive, ordinary_modes


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of the loss for a layer's weight matrix, over batches.

    The variance follows the magnitude of the feedback, so it does not compare rules; the noise scale does.

    Attributes:
        name: name of the layer.
        rule: its learning rule.
        variance: variance over the batches, the mean over all weights.
        noise_scale: tr Cov(g) / ‖mean g‖² over the batches (McCandlish et al. 2018, for this size of batch); NaN where
            the mean gradient is zero.
        cosine: cosine between the mean gradient of the rule and the mean true gradient; NaN where either is zero.
    """

    name: str
    rule: str
    variance: float
    noise_scale: float
    cosine: float


def measure_gradients(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[LayerGradient, ...]:
    """Measure the gradients of the cross-entropy on batches, in training mode, as the network learns by them.

    A copy is measured: the network, its statistics and its random streams do not change.

    Args:
        network: maps normalised images [N, C, H, W] to logits [N, classes], or to a tuple that begins with them.
        batches: at least two batches of images and labels, of the same size, on the network's device.

    Raises:
        InputError: fewer than two batches.
    """
    if len(batches) < 2:
        raise InputError(f"batches: expected at least 2, got {len(batches)}")
    learned = _gradients(network, batches, true=False)
    true = _gradients(network, batches, true=True)
    found = []
    for name, rule, _ in weight_layers(network):
        own, other = learned[name], true[name].mean(dim=0)
        mean = own.mean(dim=0)
        total = float((own - mean).square().sum() / (len(own) - 1))
        square, product = float(mean @ mean), float(mean @ other)
        norms = math.sqrt(square) * float(other.norm())
        found.append(
            LayerGradient(
                name=name,
                rule=rule,
                variance=total / mean.numel(),
                noise_scale=total / square if square else math.nan,
                cosine=product / norms if norms else math.nan,
            )
        )
    return tuple(found)


def _gradients(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, true: bool) -> dict[str, Tensor]:
    """Return the gradient of every layer on every batch, float64 [batches, weights], by name."""
    with ordinary_modes(), exclusive(), torch.random.fork_rng(_cuda(network)):
        # Both gradients see the same random numbers, such as those of drop-path.
        torch.manual_seed(0)
        net: nn.Module = copy.deepcopy(network).train()
        layers = [(name, layer) for name, _, layer in weight_layers(net)]
        rows: dict[str, list[Tensor]] = {name: [] for name, _ in layers}
        for images, labels in batches:
            net.zero_grad()
            with true_gradients(net) if true else nullcontext():
                out = net(images)
                F.cross_entropy(out[0] if isinstance(out, tuple) else out, labels).backward()
            for name, layer in layers:
                weight = layer.get_parameter("weight")
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                rows[name].append(gradient.detach().double().flatten().cpu())
        return {name: torch.stack(own) for name, own in rows.items()}


def _cuda(network: nn.Module) -> list[torch.device]:
    device = next(network.parameters()).device
    return [device] if device.type == "cuda" else []
