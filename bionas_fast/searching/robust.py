"""Robust search: a term of the fitness for images that are perturbed by ε, in units of [0, 1]."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.errors import InputError
from bionas_fast.nn import true_gradients
from bionas_fast.runs.checkpoint import expect_form
from bionas_fast.searching.config import Perturbation
from bionas_fast.searching.fitness import cross_entropies, evaluated, logits_of
from bionas_fast.searching.frozen import frozen
from bionas_fast.supernet import Mixing, Supernet


@dataclass
class RobustTerm:
    """λ times the cross-entropy on perturbed images, which robust search adds to the loss of an individual.

    Args:
        perturbation: ``noise``, ±ε at random at every pixel, the same for all individuals of a generation; ``fgsm``, ε
            times the sign of the individual's true gradient (Goodfellow et al. 2015), whatever its feedback; or
            ``off``.
        eps: largest change of a pixel, in units of [0, 1], to which perturbed images are clamped.
        weight: λ.
        mean, std: one value per channel, by which images are normalised, in units of [0, 1].

    Attributes:
        seconds: time spent on the term since :meth:`reset`.
        correct, seen: number of perturbed images classified correctly since then, over all individuals, of how many.
    """

    perturbation: Perturbation = "off"
    eps: float = 8 / 255
    weight: float = 1.0
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    seconds: float = 0.0
    correct: int = 0
    seen: int = 0

    def loss(self, net: Supernet, x: Tensor, y: Tensor, mixing: Mixing) -> Tensor | float:
        """Compute λ · cross-entropy of each individual on perturbed images, float64 [P]; 0 if it is off.

        The network is evaluated in evaluation mode, and not changed.

        Args:
            x: normalised images [N, C, H, W].
            y: int64 [N].
            mixing: for each kind of cell [P, edges, candidates].

        Raises:
            NotFinite: no cross-entropy is finite.
        """
        if self.perturbation == "off":
            return 0.0
        started = time.perf_counter()
        if self.perturbation == "noise":
            signs = 2.0 * torch.randint(0, 2, x.shape) - 1  # on the CPU: the same on every device
            logits = logits_of(net, self._perturbed(x, signs), mixing)
        else:
            logits = evaluated(net, mixing, len(x), lambda own: self._attacked(net, x, y, own))
        losses = self.weight * cross_entropies(logits, y)
        self.correct += int((logits.argmax(dim=-1) == y).sum())
        self.seen += logits.shape[0] * logits.shape[1]
        self.seconds += time.perf_counter() - started
        return losses

    def _attacked(self, net: Supernet, x: Tensor, y: Tensor, mixing: Mixing) -> Tensor:
        """Compute the logits [P, N, classes] of each individual on the images that FGSM perturbs for it."""
        logits = []
        for individual in range(len(next(iter(mixing.values())))):
            own = {kind: rows[individual] for kind, rows in mixing.items()}
            signs = true_gradient(net, x, y, own).sign()
            with torch.no_grad():
                logits.append(net(self._perturbed(x, signs), own))
        return torch.stack(logits)

    def _perturbed(self, x: Tensor, signs: Tensor) -> Tensor:
        """Change normalised images by ε · signs, clamped to [0, 1]."""
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((x * std + mean + self.eps * signs.to(x)).clamp(0, 1) - mean) / std

    def metrics(self) -> dict[str, float | None]:
        """Return the cost, and the accuracy on perturbed images in percent over all individuals; empty if off."""
        if self.perturbation == "off":
            return {}
        accuracy = 100 * self.correct / self.seen if self.seen else None
        return {"perturbed_accuracy": accuracy, "robustness_seconds": self.seconds}

    def reset(self) -> None:
        """Begin a new epoch of the metrics."""
        self.seconds, self.correct, self.seen = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume in the middle of an epoch."""
        return {"seconds": self.seconds, "correct": self.correct, "seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        """Restore the state.

        Raises:
            InputError: the state does not fit.
        """
        expect_form(state, self.state_dict(), "robustness")
        if not (0 <= state["correct"] <= state["seen"] and 0 <= state["seconds"] < float("inf")):
            raise InputError(f"robustness: {state} is out of range")
        self.seconds, self.correct, self.seen = state["seconds"], state["correct"], state["seen"]


def true_gradient(net: Supernet, x: Tensor, y: Tensor, mixing: Mixing) -> Tensor:
    """Compute the gradient of the cross-entropy for the images, with W in place of B; of nothing else.

    Args:
        x: normalised images [N, C, H, W].
        y: int64 [N].
        mixing: the mixing weights, for each kind of cell [edges, candidates].
    """
    with torch.enable_grad(), true_gradients(net), frozen(net.parameters()):
        images = x.detach().requires_grad_()
        loss = F.cross_entropy(net(images, {kind: rows.detach() for kind, rows in mixing.items()}), y)
        return torch.autograd.grad(loss, images)[0]
