"""Records of the layers of a network at one moment of its training: gradients, alignment, weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.analysis.alignment import measure_alignment
from bionas_fast.analysis.gradients import measure_gradients
from bionas_fast.analysis.weights import measure_weights
from bionas_fast.data import LabelledImages

#: Batches of a record, and images in each.
BATCHES, BATCH_SIZE = 8, 64


def probe(images: LabelledImages, device: torch.device | str = "cpu") -> list[tuple[Tensor, Tensor]]:
    """Take batches of fixed training images, without augmentation, for :func:`record_layers`.

    Up to eight batches of 64 images; of fewer images, eight smaller batches.
    """
    size = max(1, min(BATCH_SIZE, len(images) // BATCHES))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: BATCHES * size]
    chosen = torch.zeros(len(images), dtype=torch.bool)
    chosen[order] = True
    return [(x, y) for x, y in images.take(chosen).batches(size, device) if len(y) == size]


def record_layers(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], epoch: int) -> list[dict[str, Any]]:
    """Measure every layer of a network.

    Args:
        network: maps normalised images [N, C, H, W] to logits [N, classes].
        batches: batches of images and labels; see :func:`probe`.
        epoch: the number of epochs that the network was trained.

    Returns:
        One row per layer: ``epoch``, ``layer``, ``rule``, ``variance``, ``noise_scale``, ``cosine`` (of
        :class:`LayerGradient`), ``angle``, ``norm_ratio`` (of :class:`Alignment`), ``sigma`` and ``kurtosis`` (of
        :class:`WeightDistribution`). What is not defined is None.
    """
    alignment = {own.name: own for own in measure_alignment(network)}
    weights = {own.name: own for own in measure_weights(network)}
    rows = []
    for own in measure_gradients(network, batches):
        feedback = alignment.get(own.name)
        values = {
            "variance": own.variance,
            "noise_scale": own.noise_scale,
            "cosine": own.cosine,
            "angle": math.nan if feedback is None else feedback.angle,
            "norm_ratio": math.nan if feedback is None else feedback.norm_ratio,
            "sigma": weights[own.name].sigma,
            "kurtosis": weights[own.name].kurtosis,
        }
        found = {name: value if math.isfinite(value) else None for name, value in values.items()}
        rows.append({"epoch": epoch, "layer": own.name, "rule": own.rule, **found})
    return rows
