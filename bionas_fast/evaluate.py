"""Accuracy and loss of a network on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.data import evaluation_batches


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
        images: [N, C, H, W], as a dataset holds them.
        labels: [N].
        mean, std: one value a channel.
        forward: called in place of the network, where that takes further arguments.
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
    return {"accuracy": 100 * correct / len(labels), "loss": loss / len(labels)}
