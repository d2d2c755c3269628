"""The registry of attacks, each built by the package torchattacks for a network on images in [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bionas_fast.errors import InputError, unknown
from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

#: A perturbing function: (images [N, C, H, W] in [0, 1], labels [N]) → perturbed images.
Perturb = Callable[["Tensor", "Tensor"], "Tensor"]
#: Builds the function: (network, amount, ε, seed, step size) → function.
Build = Callable[["nn.Module", int, float, int, float], Perturb]


@dataclass(frozen=True)
class Family:
    """Attacks that differ by one number.

    Attributes:
        build: builds an attack.
        amount: the number's meaning: steps, queries, pixels or draws; empty if there is none.
        default: its default.
        gradient: whether the attack differentiates the network.
        norm: what is bounded: ``linf``, by ε; ``l0``, by the number of pixels; ``l2``, not bounded but minimised.
        targets: whether the attack can aim at a class.
        transferred: whether it is computed on another network than that attacked.
        cross_entropy: whether the attack differentiates the cross-entropy for the class of the image and no other loss.
    """

    build: Build
    amount: str = ""
    default: int = 1
    gradient: bool = True
    norm: Literal["linf", "l0", "l2"] = "linf"
    targets: bool = False
    transferred: bool = False
    cross_entropy: bool = False


@dataclass(frozen=True)
class Attack:
    """An attack of a family: ``pgd-10`` is that of ``pgd`` with ten steps."""

    name: str
    family: Family
    amount: int

    @property
    def bounded(self) -> bool:
        """Whether ε bounds the perturbation."""
        return self.family.norm == "linf"

    @property
    def differentiates(self) -> bool:
        """Whether the attack differentiates a network, be it the attacked one or another."""
        return self.family.gradient or self.family.transferred


_registry: Registry[Family] = Registry("attack", lambda family: family.build)


def register_attack(name: str, family: Family) -> None:
    """Register a family of attacks.

    Raises:
        InputError: the name is taken.
    """
    _registry.register(name, family)


def attack_names() -> tuple[str, ...]:
    """Return the names of all families of attacks, in the order of registration."""
    return _registry.names()


def parse_attack(name: str) -> Attack:
    """Look up an attack by its name: that of a family, and possibly a number, as in ``pgd-10``.

    Raises:
        InputError: an unknown family; the message suggests the nearest names; a number of 0, or for a family without.
    """
    family, _, number = name.rpartition("-")
    if not re.fullmatch(r"[0-9]{1,7}", number) or name in _registry:
        family, number = name, ""
    if family not in _registry:
        raise unknown("attack", name, attack_names())
    found = _registry.get(family)
    if number and not found.amount:
        raise InputError(f"attack {name!r}: {family} takes no number")
    amount = int(number) if number else found.default
    if amount < 1:
        raise InputError(f"attack {name!r}: expected at least 1 of {found.amount}, got {amount}")
    return Attack(name, found, amount)


def torchattacks() -> Any:
    """Import the package torchattacks.

    Raises:
        InputError: it is not installed.
    """
    try:
        import torchattacks as package
    except ImportError as error:
        raise InputError(
            f"attacks need the package torchattacks: pip install 'bionas-fast[attacks]' ({error})"
        ) from None
    return package


def _fgsm(net: nn.Module, _: int, eps: float, seed: int, step_size: float) -> Perturb:
    return torchattacks().FGSM(net, eps=eps)


def _pgd(net: nn.Module, steps: int, eps: float, seed: int, step_size: float) -> Perturb:
    return torchattacks().PGD(net, eps=eps, alpha=step_size, steps=steps, random_start=True)


def _tpgd(net: nn.Module, steps: int, eps: float, seed: int, step_size: float) -> Perturb:
    return torchattacks().TPGD(net, eps=eps, alpha=step_size, steps=steps)


def _apgd(loss: str) -> Build:
    def build(net: nn.Module, steps: int, eps: float, seed: int, step_size: float) -> Perturb:
        return torchattacks().APGD(net, eps=eps, steps=steps, seed=seed, loss=loss)

    return build


def _square(net: nn.Module, queries: int, eps: float, seed: int, step_size: float) -> Perturb:
    return torchattacks().Square(net, eps=eps, n_queries=queries, seed=seed)


def _autoattack(net: nn.Module, _: int, eps: float, seed: int, step_size: float) -> Perturb:
    import torch

    package = torchattacks()

    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            classes = net(images[:1]).shape[1]
        return package.AutoAttack(net, eps=eps, n_classes=classes, seed=seed)(images, labels)

    return perturb


def _one_pixel(net: nn.Module, pixels: int, eps: float, seed: int, step_size: float) -> Perturb:
    return torchattacks().OnePixel(net, pixels=pixels, steps=10, popsize=10)


def _cw(net: nn.Module, steps: int, eps: float, seed: int, step_size: float) -> Perturb:
    return torchattacks().CW(net, steps=steps)


def _deepfool(net: nn.Module, steps: int, eps: float, seed: int, step_size: float) -> Perturb:
    return torchattacks().DeepFool(net, steps=steps)


def _noise(net: nn.Module, draws: int, eps: float, seed: int, step_size: float) -> Perturb:
    """Build the control: every pixel changes by +ε or -ε at random; of several draws, the last that fools counts."""
    import torch

    @torch.no_grad()
    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        best = images.clone()
        for _ in range(draws):
            signs = torch.randint(0, 2, images.shape, device=images.device, dtype=images.dtype) * 2 - 1
            noisy = (images + eps * signs).clamp(0, 1)
            fooled = net(noisy).argmax(dim=1) != labels
            best[fooled] = noisy[fooled]
        return best

    return perturb


for _name, _family in {
    "fgsm": Family(_fgsm, targets=True, cross_entropy=True),
    "pgd": Family(_pgd, "steps", 10, targets=True, cross_entropy=True),
    "tpgd": Family(_tpgd, "steps", 7),
    "apgd-ce": Family(_apgd("ce"), "steps", 50, cross_entropy=True),
    "apgd-dlr": Family(_apgd("dlr"), "steps", 50),
    "autoattack": Family(_autoattack),
    "cw": Family(_cw, "steps", 50, norm="l2", targets=True),
    "deepfool": Family(_deepfool, "steps", 50, norm="l2"),
    "transfer": Family(_pgd, "steps", 10, gradient=False, targets=True, transferred=True),
    "square": Family(_square, "queries", 300, gradient=False, targets=True),
    "onepixel": Family(_one_pixel, "pixels", 1, gradient=False, norm="l0", targets=True),
    "noise": Family(_noise, "draws", 1, gradient=False),
}.items():
    register_attack(_name, _family)
