"""Reasons to doubt a robust accuracy, after Carlini et al. (2019) and the checks of AutoAttack (Croce and Hein 2020).

A gradient attack that fails says nothing if its gradient does not lead to adversarial images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.robustness.attacks import torchattacks
from bionas_fast.robustness.config import AttackConfig
from bionas_fast.robustness.results import Outcome, show_eps
from bionas_fast.robustness.victim import Victim

#: Images for the checks that attack or differentiate.
_IMAGES = 100
#: The largest accuracy, of originally correct images, that an attack without bound may leave; in percent.
_UNBOUNDED = 5.0


def doubts(
    feedback: Victim, true: Victim, attacked: tuple[Tensor, Tensor], outcomes: Sequence[Outcome], config: AttackConfig
) -> tuple[str, ...]:
    """List the reasons to doubt the outcomes, in words.

    Args:
        feedback, true: the network with either gradient.
        attacked: the attacked images and labels.
        outcomes: the results.
        config: the settings of the attack.
    """
    images, labels = (own[:_IMAGES] for own in attacked)
    if not len(images):
        return ("the network classifies no image correctly, so none was attacked",)
    found = [*_stronger_without_gradient(outcomes), *_form_of_logits(feedback, images)]
    victims = {"feedback": feedback, "true": true}
    for gradient in config.gradients:
        victim = victims[gradient]
        found += _gradients(gradient, victim, images, labels)
        if any(own.gradient == gradient for own in outcomes):
            found += _without_bound(gradient, victim, images, labels)
    return tuple(found)


def _stronger_without_gradient(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Compare the strongest attack through a gradient with each attack without, at every ε."""
    bounded = [own for own in outcomes if own.eps is not None]
    for gradient in ("feedback", "true"):
        for eps in dict.fromkeys(own.eps for own in bounded):
            white = [own for own in bounded if own.gradient == gradient and own.eps == eps]
            if not white or eps is None:
                continue
            best = min(white, key=lambda own: own.accuracy.percent)
            for black in (own for own in bounded if own.gradient is None and own.eps == eps):
                difference = best.correct.double() - black.correct.double()
                mean, spread = float(difference.mean()), float(difference.std())
                if mean > 2 * spread / len(difference) ** 0.5 and mean > 0:
                    yield (
                        f"obfuscated gradient: {black.attack}, which uses no gradient, leaves "
                        f"{black.accuracy.percent:.1f} % correct at ε = {show_eps(eps)}, fewer than {best.attack} "
                        f"through the {gradient} gradient ({best.accuracy.percent:.1f} %)"
                    )


@torch.no_grad()
def _form_of_logits(victim: Victim, images: Tensor) -> Iterator[str]:
    first, second = victim(images), victim(images)
    if not torch.equal(first, second):
        yield "random predictions: two passes give different logits; average over them, or the attacks are too weak"
    if bool((first >= 0).all()) and torch.allclose(first.sum(dim=1), first.new_ones(len(first)), atol=1e-4):
        yield "probabilities: the network ends with a softmax; attacks need its logits"


def _gradients(name: str, victim: Victim, images: Tensor, labels: Tensor) -> Iterator[str]:
    first, second = (_gradient(victim, images, labels) for _ in range(2))
    zero = (first.flatten(1).abs().amax(dim=1) == 0).double().mean().item()
    if zero > 0:
        yield f"zero gradient: the {name} gradient of {100 * zero:.0f} % of the images is exactly 0"
    if not torch.equal(first, second):
        yield f"random gradient: two passes give different {name} gradients; set eot"


def _gradient(victim: Victim, images: Tensor, labels: Tensor) -> Tensor:
    x = images.clone().requires_grad_()
    loss = F.cross_entropy(victim(x), labels, reduction="sum")
    if not loss.requires_grad:
        return torch.zeros_like(images)
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(images) if gradient is None else gradient


def _without_bound(name: str, victim: Victim, images: Tensor, labels: Tensor) -> Iterator[str]:
    """Attack with ε = 1: the images may become anything, so a working gradient fools the network."""
    if not _gradient(victim, images, labels).any():
        return  # said already
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
        torch.manual_seed(0)
        perturb = torchattacks().PGD(victim, eps=1.0, alpha=0.05, steps=40)
        adversarial = perturb(images, labels)
    with torch.no_grad():
        left = 100 * (victim(adversarial).argmax(dim=1) == labels).double().mean().item()
    if left > _UNBOUNDED:
        yield (
            f"obfuscated gradient: with ε = 1, where images may become anything, PGD through the {name} gradient still "
            f"leaves {left:.0f} % of the originally correct images correct"
        )
