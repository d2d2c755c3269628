"""Accuracy and loss of a network on labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.data import evaluation_batches
from bionas_fast.errors import NotFinite


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    batch_size: int = 256,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Compute accuracy in percent and mean cross-entropy in nats, in evaluation mode; the mode is restored.

    Args:
        network: maps normalised images [N, C, H, W] to logits [N, classes].
        images: [N, C, H, W], in the format of a dataset.
        labels: int64 [N].
        mean, std: one value per channel, in units of [0, 1].
        batch_size: number of images per batch.
        forward: called instead of the network, if that takes further arguments.

    Raises:
        NotFinite: the cross-entropy is not finite; the predicted classes are then arbitrary.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    correct, loss = 0, 0.0
    try:
        for x, y in evaluation_batches(images, labels, batch_size, mean=mean, std=std, device=device):
            logits = (forward or network)(x)
            correct += int((logits.argmax(dim=1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    finally:
        network.train(training)
    if not math.isfinite(loss):
        raise NotFinite(f"the cross-entropy of the evaluated images ({loss})")
    return {"accuracy": 100 * correct / len(labels), "loss": loss / len(labels)}
