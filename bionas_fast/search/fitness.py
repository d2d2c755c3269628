"""How good the individuals of a population are on a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.errors import InputError
from bionas_fast.runtime import distributed
from bionas_fast.supernet import Mixing, Supernet


def logits_of(net: Supernet, x: Tensor, mixing: Mixing) -> Tensor:
    """Logits [P, N, classes] in evaluation mode; the network's mode is restored.

    Several processes share out the individuals among them.
    """
    training = net.training
    net.eval()
    count = len(next(iter(mixing.values())))
    bounds = [count * r // distributed.size() for r in range(distributed.size() + 1)]
    own = slice(*bounds[distributed.rank() : distributed.rank() + 2]) if distributed.active() else slice(None)
    try:
        mine = {kind: rows[own] for kind, rows in mixing.items()}
        few = own != slice(None) and own.start == own.stop
        return distributed.gathered(x.new_empty(0, len(x), net.num_classes) if few else net.population(x, mine))
    finally:
        net.train(training)


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each individual, float64 [P].

    Raises:
        InputError: one is not finite.
    """
    losses = F.cross_entropy(logits.double().transpose(1, 2), y.expand(len(logits), -1), reduction="none").mean(dim=1)
    if not torch.isfinite(losses).all():
        raise InputError("the supernet's validation loss is not finite; a lower learning rate may help")
    return losses


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """How many images each individual gets right, int64 [P]."""
    return (logits.argmax(dim=-1) == y).sum(dim=-1)


def similarity(rows: Mixing, reference: Mixing) -> Tensor:
    """(cos + 1) / 2 between the rows of each individual and those of a reference, averaged over edges and cells, [P].

    Args:
        rows: for each kind of cell [P, edges, candidates].
        reference: for each kind of cell [edges, candidates].
    """
    each = [
        (F.cosine_similarity(own, reference[kind][None], dim=-1).mean(dim=-1) + 1) / 2 for kind, own in rows.items()
    ]
    return torch.stack(each).mean(dim=0)
