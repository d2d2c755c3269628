"""Attacks side by side, against torchattacks one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

import bionas_fast as bf
from bionas_fast.robustness import AttackConfig, attack
from bionas_fast.robustness.side_by_side import TOGETHER, Shared, side_by_side
from helpers.supernets import relative
from helpers.tolerances import REORDERED_FLOAT32

CPU = torch.device("cpu")
EPS = (0.05, 0.1, 0.2)
ATTACKS = {
    "fgsm": lambda net, eps: torchattacks.FGSM(net, eps=eps),
    "pgd-4": lambda net, eps: torchattacks.PGD(net, eps=eps, alpha=0.04, steps=4),
    "apgd-ce-4": lambda net, eps: torchattacks.APGD(net, eps=eps, steps=4, seed=0, loss="ce"),
    "square-40": lambda net, eps: torchattacks.Square(net, eps=eps, n_queries=40, seed=0),
}


class Counting(nn.Module):
    """A linear network that counts its passes and images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.sizes = nn.Linear(36, 5), []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.linear(x.flatten(1))


@pytest.fixture
def network():
    return Counting().requires_grad_(False)


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(20, 1, 6, 6)


@pytest.mark.parametrize("name", ATTACKS)
def test_several_eps_give_what_each_gives_alone(name, images):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    labels = net(images).argmax(dim=1)
    config = AttackConfig(attacks=(name,), eps=EPS, step_size=0.04, gradient="true")
    outcomes = attack(net, (images, labels), config).outcomes
    assert [own.eps for own in outcomes] == list(EPS)
    for own, eps in zip(outcomes, EPS, strict=True):
        torch.manual_seed(0)
        adversarial = ATTACKS[name](net, eps)(images, labels)
        fooled = net(adversarial).argmax(dim=1) != labels
        norms = (adversarial - images)[fooled].flatten(1).norm(dim=1)
        assert torch.equal(own.correct, ~fooled)
        assert 0 < len(norms) == len(own.distances)
        assert relative(torch.tensor(own.distances), norms) < REORDERED_FLOAT32


def test_passes_are_shared(network, images):
    labels = torch.arange(20) % 5
    tasks = [lambda eps=eps: torchattacks.PGD(Shared(network), eps=eps, steps=3)(images, labels) for eps in EPS]
    found = side_by_side(tasks, CPU)
    assert network.sizes == [60, 60, 60]
    for eps, adversarial in zip(EPS, found, strict=True):
        assert (adversarial - images).abs().max().item() == pytest.approx(eps, rel=1e-4)


def test_a_pass_has_no_more_images_than_it_gains_from(network):
    images = torch.rand(TOGETHER // 2, 1, 6, 6)
    side_by_side([lambda: Shared(network)(images)] * 5, CPU)
    assert sorted(network.sizes) == [TOGETHER // 2, TOGETHER, TOGETHER]


def test_gradients_of_different_tasks_do_not_mix(network, images):
    """Also where tasks differentiate some logits several times, some once, and some not at all."""
    weight = network.linear.weight

    def jacobian():
        x = images[:1].clone().requires_grad_()
        logits = Shared(network)(x)[0]
        return torch.stack([torch.autograd.grad(own, x, retain_graph=True)[0].flatten() for own in logits])

    def gradient():
        x = images[1:3].clone().requires_grad_()
        (Shared(network)(x)[:, 2] * torch.tensor([1.0, 3.0])).sum().backward()
        return x.grad.flatten(1)

    def logits():
        return Shared(network)(images[3:])

    first, second, third = side_by_side([jacobian, gradient, logits], CPU)
    assert torch.equal(first, weight)
    assert torch.equal(second, torch.stack([weight[2], 3 * weight[2]]))
    assert relative(third, images[3:].flatten(1) @ weight.T + network.linear.bias) < REORDERED_FLOAT32


def test_every_task_has_its_own_random_numbers(network, images):
    def task(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)
        drawn = []
        for _ in range(3):
            drawn += [torch.rand(()).item(), np.random.rand()]
            Shared(network)(images[:2])
        return drawn

    alone = [task(seed) for seed in (3, 4)]
    assert side_by_side([lambda: task(3), lambda: task(4)], CPU) == alone


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_all(error, network, images):
    ended = []

    def fails():
        Shared(network)(images)
        raise error("no more")

    def waits():
        try:
            for _ in range(100):
                x = images.clone().requires_grad_()
                Shared(network)(x).sum().backward()
        finally:
            ended.append(len(network.sizes))

    with pytest.raises(error, match="no more"):
        side_by_side([waits, fails, waits], CPU)
    assert len(ended) == 2
    assert len(network.sizes) < 5


@pytest.mark.parametrize("dependent", [False, True])
def test_images_that_depend_on_their_batch_are_not_mixed(dependent, images):
    sizes = []

    class Network(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            logits = x.flatten(2).sum(dim=1)[:, :5]
            return logits - logits.mean(dim=0) if dependent else logits

    labels = Network()(images).argmax(dim=1)
    attack(Network(), (images, labels), AttackConfig(attacks=("fgsm",), eps=EPS, gradient="true"))
    assert (max(sizes) > len(images)) != dependent


def test_on_a_card(cuda, images):
    net = bf.nn.Linear(36, 5, rule="fa").to(cuda).requires_grad_(False)
    images, labels = images.to(cuda), (torch.arange(20) % 5).to(cuda)

    def task(eps):
        shared = Shared(nn.Sequential(nn.Flatten(), net))
        return torchattacks.FGSM(shared, eps=eps)(images, labels)

    alone = [task(eps) for eps in EPS]
    together = side_by_side([lambda eps=eps: task(eps) for eps in EPS], images.device)
    for one, other in zip(alone, together, strict=True):
        assert relative(other, one) < REORDERED_FLOAT32
