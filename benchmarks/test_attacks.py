"""FGSM, PGD-10 and Square-300 on 1,000 images of fashion-mnist, after a comparison with torchattacks itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchattacks
from torch import nn

import bionas_fast as bf
from bionas_fast.robustness import AttackConfig, Victim, attack, attacking, side_by_side
from bionas_fast.robustness.side_by_side import TOGETHER
from bionas_fast.space.publications import published
from measuring import interleaved, show

FASHION = Path("/usr/share/datasets/fashion-mnist")
IMAGES, BATCH, EPS = 1000, 250, 8 / 255
ATTACKS = AttackConfig(attacks=("fgsm", "pgd-10", "square-300"), gradient="true", eps=(EPS,), batch_size=BATCH)

NETWORKS = {
    "resnet20": lambda: bf.build_resnet("resnet20", in_channels=1),
    "biodarts2, 5 cells, 8 channels": lambda: bf.build_network(
        published("biodarts2").genotype, channels=8, cells=5, in_channels=1, num_classes=10
    ),
}


def fashion() -> torch.Tensor:
    """Test images of fashion-mnist in [0, 1], or noise of their shape."""
    if FASHION.is_dir():
        return bf.load_dataset("fashion-mnist", FASHION).test_images[:IMAGES].float() / 255
    return torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def predicted(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the network says of images: as their labels, all are attacked."""
    return torch.cat([net(part).argmax(dim=1) for part in images.split(BATCH)])


def theirs(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """What each attack of torchattacks leaves correct."""
    attacks = (
        torchattacks.FGSM(net, eps=EPS),
        torchattacks.PGD(net, eps=EPS, alpha=2 / 255, steps=10),
        torchattacks.Square(net, eps=EPS, n_queries=300, seed=0),
    )
    left = []
    for perturb in attacks:
        torch.manual_seed(0)
        left.append(predicted(net, perturb(images, labels).detach()) == labels)
    return left


def test_results_are_those_of_torchattacks():
    net = bf.to_torch(bf.build_resnet("resnet20", in_channels=1)).eval()
    images = fashion()[:50]
    labels = predicted(net, images)
    found = attack(net, (images, labels), ATTACKS)
    for outcome, left in zip(found.outcomes, theirs(net, images, labels), strict=True):
        assert torch.equal(outcome.correct, left)


@pytest.mark.parametrize("name", NETWORKS)
def test_most_that_attacks_can_take(name, benchmark, report):
    """Processor time if no image is ever fooled: then every query of every attack is made on every image."""
    images = fashion()[:BATCH]
    victim = Victim(NETWORKS[name](), gradient="true")
    labels = predicted(victim, images)

    def forward() -> None:
        predicted(victim, images)

    def gradient() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(victim(x), labels), x)

    once = {step.__name__: processor_seconds(step) for step in (forward, gradient)}
    batches = len(fashion()) / BATCH
    total = batches * (11 * once["gradient"] + 302 * once["forward"])
    report.add(f"{name}, {BATCH} images", f"{once['forward']:.3f} s a pass, {once['gradient']:.3f} s a gradient")
    report.add(f"{name}, FGSM + PGD-10 + Square-300, {IMAGES} images", f"at most {total:.0f} processor seconds")
    show(benchmark, forward, once["forward"])


@pytest.mark.parametrize("images", [20, 40])
@pytest.mark.parametrize("name", NETWORKS)
def test_several_eps_side_by_side(name, images, benchmark, report, monkeypatch):
    """Attacks at three ε that share passes, next to the same attacks without: the same outcomes."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    x = fashion()[:images]
    labels = predicted(Victim(net, gradient="true"), x)
    config = AttackConfig(attacks=("fgsm", "pgd-5", "square-20"), gradient="true", eps=(EPS / 4, EPS / 2, EPS))

    monkeypatch.setattr(attacking, "doubts", lambda *_: ())

    def run(most: int) -> list[torch.Tensor]:
        for module in (attacking, side_by_side):
            monkeypatch.setattr(module, "TOGETHER", most)
        return [own.correct for own in attack(net, (x, labels), config).outcomes]

    for one, other in zip(run(TOGETHER), run(1), strict=True):
        assert torch.equal(one, other)
    steps = {"side by side": lambda: run(TOGETHER), "one after the other": lambda: run(1)}
    times = interleaved(steps, rounds=2)
    report.ratios(f"{name}, three ε, {images} images", times, "one after the other")
    show(benchmark, steps["side by side"], times["side by side"])


def processor_seconds(step: Callable[[], None], rounds: int = 3) -> float:
    """Median processor seconds, of all threads, after a warm-up."""
    step()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        step()
        times.append(time.process_time() - started)
    return statistics.median(times)
