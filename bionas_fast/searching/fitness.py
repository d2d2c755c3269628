"""The fitness of the individuals of a population on a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.errors import NotFinite
from bionas_fast.runtime import distributed
from bionas_fast.supernet import Mixing, Supernet


def logits_of(net: Supernet, x: Tensor, mixing: Mixing) -> Tensor:
    """Compute logits [P, N, classes] of a population in evaluation mode; see :func:`evaluated`."""
    return evaluated(net, mixing, len(x), lambda own: net.population(x, own))


def evaluated(net: Supernet, mixing: Mixing, images: int, logits: Callable[[Mixing], Tensor]) -> Tensor:
    """Compute logits [P, images, classes] in evaluation mode; the network's mode is restored.

    Several processes divide the individuals among themselves.

    Args:
        mixing: for each kind of cell [P, edges, candidates].
        images: the number of images.
        logits: computes the logits of some of the individuals from their mixing weights.
    """
    training = net.training
    net.eval()
    first, last = distributed.shard_bounds(len(next(iter(mixing.values()))))
    try:
        if first == last:
            local = next(net.parameters()).new_empty(0, images, net.num_classes)
        else:
            local = logits({kind: rows[first:last] for kind, rows in mixing.items()})
        return distributed.all_gather(local)
    finally:
        net.train(training)


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the mean cross-entropy of each individual, float64 [P]; inf where it is not finite.

    Raises:
        NotFinite: no cross-entropy is finite.
    """
    losses = F.cross_entropy(logits.double().transpose(1, 2), y.expand(len(logits), -1), reduction="none").mean(dim=1)
    finite = losses.isfinite()
    if not finite.any():
        raise NotFinite("the validation loss of every architecture of the population")
    return losses.where(finite, torch.inf)


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Count the images that each individual classifies correctly, int64 [P]."""
    return (logits.argmax(dim=-1) == y).sum(dim=-1)


def similarity(rows: Mixing, reference: Mixing) -> Tensor:
    """Compute (cos + 1) / 2 of the rows of each individual and of a reference, averaged over edges and cells, [P].

    Args:
        rows: for each kind of cell [P, edges, candidates].
        reference: for each kind of cell [edges, candidates].
    """
    by_kind = [
        (F.cosine_similarity(row, reference[kind][None], dim=-1).mean(dim=-1) + 1) / 2 for kind, row in rows.items()
    ]
    return torch.stack(by_kind).mean(dim=0)
