"""Checks of Hebbian updates, against their reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from bionas_fast.kernels.hebbian import reference
from bionas_fast.kernels.hebbian.records import NORMALISATIONS, RULES
from bionas_fast.kernels.window import Window
from bionas_fast.ops.hebbian import hebbian_update
from bionas_fast.verification.bounds import rounding
from bionas_fast.verification.check import Check, Expected, Target

RATE = 0.1


class Layer(NamedTuple):
    """A plastic convolution."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    temperature: float = 0.5

    @property
    def window(self) -> Window:
        """The geometry."""
        return Window([self.stride] * 2, [self.padding] * 2, [1, 1], self.groups)

    @property
    def text(self) -> str:
        """The shapes and the geometry in words."""
        words = ["x".join(map(str, self.input)), "weight", "x".join(map(str, self.weight))]
        for name, value, usual in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("groups", self.groups, 1),
        ):
            words += [name, str(value)] if value != usual else []
        return " ".join(words)


ODD = (
    Layer((3, 4, 3, 3), (42, 2, 3, 3), padding=1, groups=2),
    Layer((3, 4, 9, 7), (10, 4, 3, 3), stride=2),
    Layer((2, 33, 6, 5), (70, 33, 3, 3), padding=1),
)
#: The first two layers of SoftHebb for CIFAR-10 (Journé et al. 2023).
REAL = (Layer((10, 3, 36, 36), (96, 3, 5, 5), temperature=1.0), Layer((10, 96, 18, 18), (384, 96, 3, 3)))


def checks(target: Target) -> Iterator[Check]:
    """Make the checks of all rules and normalisations."""
    rules, normalisations = tuple(RULES), tuple(NORMALISATIONS)
    for layer in REAL if target.large else ODD:
        for number, rule in enumerate(rules):
            yield _update(target, layer, rule, normalisations[number % len(normalisations)])
    if not target.large:
        for normalisation in normalisations:
            yield _update(target, ODD[0], "softhebb", normalisation)


def _update(target: Target, layer: Layer, rule: str, normalisation: str) -> Check:
    draw, window = target.draw(), layer.window
    fan_in = layer.weight[1] * layer.weight[2] * layer.weight[3]
    x, weight = draw.normal(*layer.input), draw.normal(*layer.weight, scale=fan_in**-0.5)
    u = F.conv2d(x.double(), weight.double(), None, *window).to(x.dtype)
    geometry: Any = {
        "stride": window.stride,
        "padding": window.padding,
        "groups": layer.groups,
        "temperature": layer.temperature,
        "normalisation": normalisation,
    }

    def run(weight: Tensor, x: Tensor, u: Tensor) -> list[Tensor]:
        moved = weight.clone()
        delta = hebbian_update(moved, x, u, rule=rule, rate=RATE, backend=target.backend, **geometry)
        return [delta, moved]

    def expect(weight: Tensor, x: Tensor, u: Tensor) -> Expected:
        moved = weight.clone()
        delta = hebbian_update(moved, x, u, rule=rule, rate=RATE, backend="reference", **geometry)
        y = reference.activity(u, rule, layer.temperature, layer.groups)
        # The decay is subtracted: with a negative weight its magnitude is added.
        scale = reference.delta(-weight.abs(), x.abs(), u.abs(), y.abs(), rule, window)
        scale = scale.new_full((), float(scale.max())).expand_as(scale)  # fast algorithms spread rounding
        if normalisation == "max":
            plain = reference.delta(weight, x, u, y, rule, window)
            grouped = plain.flatten(1).unflatten(0, (layer.groups, -1)).abs().amax(dim=(1, 2))
            largest = grouped.repeat_interleave(len(weight) // layer.groups).view(-1, 1, 1, 1)
            scale = 2 * scale / largest  # the error of Δ, and that of its largest magnitude
        own = weight.abs() + RATE * scale
        if normalisation == "unit":
            norm = (weight + RATE * delta).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            own = own / norm + moved.abs() * own.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / norm
        positions = u.numel() // u.shape[1]
        bound = rounding(target, positions + u.shape[1] // layer.groups + fan_in, 4)
        return Expected([delta, moved], [scale, own], [bound, bound])

    return Check(f"hebbian update, {rule}, {normalisation}", layer.text, (weight, x, u), run, expect)
