"""The results of attacks: one truth value per image and attack, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bionas_fast.errors import InputError
from bionas_fast.robustness.config import AttackConfig

#: The 97.5 % quantile of the normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Proportion:
    """A share of images, and its 95 % confidence interval after Wilson (1927), all in percent.

    Attributes:
        count: number of images that the share counts.
        total: number of images.
    """

    count: int
    total: int

    @property
    def percent(self) -> float:
        """The share in percent; NaN without images."""
        return 100 * self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and the upper end of the interval, in percent."""
        if not self.total:
            return math.nan, math.nan
        share, n = self.count / self.total, self.total
        centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} ({low:.1f}–{high:.1f})"


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of an attack on a network.

    Attributes:
        attack: its name, such as ``pgd-10``.
        gradient: the gradient that it used: ``feedback``, ``true``, or None for an attack without gradients.
        eps: the largest change of a pixel, in units of [0, 1]; None for an attack that ε does not bound.
        correct: bool [N], whether each image was classified correctly before *and* after the attack.
        distances: the Euclidean norm of each perturbation that succeeded, in units of [0, 1].
        seconds: duration.
    """

    attack: str
    gradient: str | None
    eps: float | None
    correct: Tensor
    distances: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def accuracy(self) -> Proportion:
        """The robust accuracy: the share of all images that are classified correctly before and after."""
        return Proportion(int(self.correct.sum()), len(self.correct))

    @property
    def median_distance(self) -> float:
        """The median norm of the perturbations that succeeded; NaN without any."""
        return float(torch.tensor(self.distances).median()) if self.distances else math.nan

    @property
    def label(self) -> str:
        """The attack with its gradient and ε, for people."""
        parts = [self.attack, self.gradient, None if self.eps is None else f"ε = {show_eps(self.eps)}"]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, eq=False)
class Robustness:
    """The results of all attacks on a network. Clean and attacked accuracy are counted separately.

    Attributes:
        clean: bool [N], whether each image is classified correctly.
        outcomes: one for each attack, gradient and ε.
        warnings: reasons to doubt the figures.
        name: name of the network.
        config: the settings of the attacks, if known.
    """

    clean: Tensor
    outcomes: tuple[Outcome, ...]
    warnings: tuple[str, ...] = ()
    name: str = "network"
    config: AttackConfig | None = None

    @property
    def clean_accuracy(self) -> Proportion:
        """The accuracy on unchanged images."""
        return Proportion(int(self.clean.sum()), len(self.clean))

    def of_correct(self, outcome: Outcome) -> Proportion:
        """Return the share of the originally correct images that an attack leaves correct."""
        return Proportion(int(outcome.correct.sum()), int(self.clean.sum()))

    def find(self, attack: str, gradient: str | None = None, eps: float | None = None) -> Outcome:
        """Look up an outcome.

        Raises:
            InputError: there is no such outcome, or there are several; the message lists them all.
        """
        found = [
            own
            for own in self.outcomes
            if own.attack == attack and gradient in (None, own.gradient) and eps in (None, own.eps)
        ]
        if len(found) != 1:
            known = "; ".join(own.label for own in self.outcomes)
            raise InputError(f"outcome: expected one, {len(found)} match {attack!r}; there are: {known}")
        return found[0]

    def worst_case(self, eps: float, gradients: Iterable[str | None] = ("feedback", "true", None)) -> Proportion:
        """Return the share of images that all attacks bounded by this ε leave correct.

        Args:
            eps: in units of [0, 1].
            gradients: the gradients of the attacks that count; None for those without.
        """
        chosen = [own.correct for own in self.outcomes if own.eps == eps and own.gradient in tuple(gradients)]
        if not chosen:
            raise InputError(f"eps: no attack with {show_eps(eps)}")
        left = torch.stack(chosen).all(dim=0)
        return Proportion(int(left.sum()), len(left))

    def blindness(self, attack: str, eps: float | None = None) -> Blindness:
        """Compare an attack through the feedback with that through the true gradient.

        Raises:
            InputError: the attack was not made with both.
        """
        through = {own.gradient: own for own in self.outcomes if own.attack == attack and own.eps == eps}
        if not {"feedback", "true"} <= through.keys():
            raise InputError(f"blindness: {attack!r} was not made with both gradients")
        return Blindness.of(through["feedback"].correct, through["true"].correct)


@dataclass(frozen=True)
class Blindness:
    """The accuracy under an attack through feedback minus that through the true gradient, in percentage points.

    Above 0, the feedback hides the way to adversarial images from the attacker but not their existence. Exactly 0 for a
    network that learns by back-propagation.

    Attributes:
        points: the difference.
        half_width: half the width of its 95 % confidence interval, from the paired differences of the images.
    """

    points: float
    half_width: float

    @classmethod
    def of(cls, feedback: Tensor, true: Tensor) -> Blindness:
        """Compute the difference from what is correct under both attacks, bool [N] each."""
        difference = feedback.double() - true.double()
        spread = float(difference.std()) if len(difference) > 1 else math.nan
        return cls(100 * float(difference.mean()), 100 * _Z * spread / math.sqrt(len(difference)))

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {self.half_width:.1f}"


def show_eps(eps: float) -> str:
    """Format ε, as a number of 255ths if it is one and no short decimal."""
    steps, decimal = eps * 255, f"{eps:g}"
    return f"{round(steps)}/255" if len(decimal) > 5 and abs(steps - round(steps)) < 1e-6 else decimal


def unpack(bits: Sequence[int]) -> Tensor:
    """Return a bool tensor [N] from zeros and ones."""
    return torch.tensor([bool(bit) for bit in bits])
