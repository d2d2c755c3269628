"""The search of EG-NAS as its published code runs it, including its faults, for comparison.

Once per epoch, 50 individuals are drawn around softmax(alpha) plus noise of 0.01 and evaluated on one validation batch,
and the best one moves the alphas. Faults that are reproduced:

* The step size is always 1: it should fall with the epoch, which is never passed on.
* CMA-ES receives the fitness once and is not sampled again, so nothing adapts: each step is the best of 50 Gaussian
  draws.
* The 50 draws are the same in every epoch and in each of the three restarts, which are therefore equivalent to one.
* An individual is normalised to length 1 and passed through a softmax; the winner passes a second one, which leaves
  nearly equal weights.
* Similarity with the current architecture is a penalty for individuals that are at least as accurate, and a reward for
  all others.
* If the best individual classifies no image correctly, the alphas do not move.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.data import Stream
from bionas_fast.searching.fitness import correct, cross_entropies, logits_of, similarity
from bionas_fast.searching.method import ROBUSTNESS, SearchMethod
from bionas_fast.searching.names import register_method
from bionas_fast.supernet import Mixing

NOISE = 1e-2
SIGMA = 1.0
SEED = 1


@register_method("eg-published")
class PublishedEvolution(SearchMethod):
    """One step of the alphas per epoch, after the warm-up."""

    options = ("population", "eg_step", "fitness_similarity", *ROBUSTNESS)
    divergence = ("eg_step",)

    @torch.no_grad()
    def before_epoch(self, valid: Stream) -> None:
        if self.warming_up:
            return
        self.announce("judging the population")
        alphas = dict(self.net.alphas.items())
        x, y = next(valid)
        noisy = [torch.softmax(alpha, dim=-1) + NOISE * torch.randn_like(alpha) for alpha in alphas.values()]
        mean = torch.cat([rows.flatten() for rows in noisy]).cpu().double().numpy()
        rows = as_rows(torch.from_numpy(draws(mean, self.config.population)).to(noisy[0]), alphas)
        weights = as_weights(rows)
        logits = logits_of(self.net, x, weights)
        present = logits_of(self.net, x, {kind: w[None] for kind, w in self.net.architecture.mixing().items()})
        scores = fitness(logits, y, rows, alphas, int(correct(present, y)), self.config.fitness_similarity)
        scores = scores + self.robustness.loss(self.net, x, y, weights)
        direction = twice_softened(weights, best(scores))
        hits = correct(logits_of(self.net, x, {kind: w[None] for kind, w in direction.items()}), y)
        if int(hits):
            for kind, alpha in alphas.items():
                alpha.add_(direction[kind], alpha=self.config.eg_step)


def draws(mean: np.ndarray, population: int) -> np.ndarray:
    """Draw the first generation of the published CMA-ES, [population, D]."""
    return mean + SIGMA * np.random.RandomState(SEED).standard_normal((population, len(mean)))


def as_rows(individuals: Tensor, alphas: Mixing) -> dict[str, Tensor]:
    """Split vectors [P, D] into rows of norm 1, for each kind of cell [P, edges, candidates]."""
    parts = individuals.split([alpha.numel() for alpha in alphas.values()], dim=1)
    return {
        kind: F.normalize(part.unflatten(1, tuple(alpha.shape)), dim=-1)
        for (kind, alpha), part in zip(alphas.items(), parts, strict=True)
    }


def as_weights(rows: Mixing) -> dict[str, Tensor]:
    """Compute the mixing weights of individuals, for each kind of cell [P, edges, candidates]."""
    return {kind: torch.softmax(row, dim=-1) for kind, row in rows.items()}


def fitness(logits: Tensor, y: Tensor, rows: Mixing, alphas: Mixing, present: int, eta: float) -> Tensor:
    """Compute cross-entropy plus or minus η · similarity, [P]; lower is better.

    Args:
        logits: of the individuals, [P, N, classes].
        rows: the individuals as :func:`as_rows` splits them.
        present: the number of images that the current architecture classifies correctly.
    """
    closeness = similarity(rows, {kind: torch.softmax(alpha, dim=-1) for kind, alpha in alphas.items()})
    sign = torch.where(correct(logits, y) >= present, 1.0, -1.0)
    return cross_entropies(logits, y) + eta * sign * closeness


def best(scores: Tensor) -> int:
    """Return the index of the lowest score, the last one in case of ties."""
    return len(scores) - 1 - int(scores.flip(0).argmin())


def twice_softened(weights: Mixing, individual: int) -> dict[str, Tensor]:
    """Apply a softmax to the mixing weights of one individual, for each kind of cell [edges, candidates]."""
    return {kind: torch.softmax(each[individual], dim=-1) for kind, each in weights.items()}
