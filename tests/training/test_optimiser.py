"""Optimisers and schedules of supervised training, against those of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from bionas_fast import InputError
from bionas_fast.training.config import SupervisedConfig
from bionas_fast.training.optimiser import build_optimizer
from bionas_fast.training.schedule import learning_rate

E = 12


def config(**settings):
    return SupervisedConfig(**{"epochs": E, **settings})


def rates(**settings):
    settings = config(**settings)
    return [learning_rate(settings, epoch) for epoch in range(E)]


def of_torch(make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = make(optimizer)
    found = []
    for _ in range(E):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({}, lambda o: lr_scheduler.CosineAnnealingLR(o, E)),
        ({"learning_rate_min": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, E, 0.1)),
        ({"schedule": "linear"}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, E)),
        ({"schedule": "linear", "learning_rate_min": 0.1}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, E)),
        ({"schedule": "multistep", "schedule_epochs": (3, 8)}, lambda o: lr_scheduler.MultiStepLR(o, [3, 8])),
        (
            {"schedule": "step", "schedule_epochs": (5,), "schedule_factor": 0.3},
            lambda o: lr_scheduler.StepLR(o, 5, 0.3),
        ),
        ({"schedule": "constant"}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        (
            {"schedule": "constant", "warmup_epochs": 4},
            lambda o: lr_scheduler.LambdaLR(o, lambda epoch: min(1, (epoch + 1) / 4)),
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_schedules_are_those_of_torch(settings, make):
    assert rates(learning_rate=0.5, **settings) == pytest.approx(of_torch(make), abs=1e-12)


def test_published_schedule_on_imagenet():
    """250 epochs, warm-up of 5, linear to 0 over 245, a fifth of it over the last 5."""
    settings = SupervisedConfig(epochs=250, learning_rate=0.5, schedule="linear", linear_tail=5, warmup_epochs=5)
    found = [learning_rate(settings, e) for e in range(250)]
    assert found[0] == pytest.approx(0.5 * (245 / 245) / 5)
    assert found[4] == pytest.approx(0.5 * 241 / 245)
    assert found[100] == pytest.approx(0.5 * 145 / 245)
    assert found[245:] == pytest.approx([0.5 * (250 - e) / (245 * 5) for e in range(245, 250)])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def trained(net, optimizer):
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.02)),
        ({"nesterov": True}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.02, nesterov=True)),
        (
            {"optimizer": "adam", "optimizer_options": {"betas": [0.5, 0.9]}},
            lambda p: torch.optim.Adam(p, 0.01, betas=(0.5, 0.9), weight_decay=0.02),
        ),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.02)),
        (
            {"optimizer": "torch.optim.RMSprop", "momentum": 0.3, "optimizer_options": {"alpha": 0.7}},
            lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.3, weight_decay=0.02, alpha=0.7),
        ),
        ({"optimizer": "torch.optim.Rprop", "weight_decay": 0.0}, lambda p: torch.optim.Rprop(p, 0.01)),
    ],
    ids=["sgd", "nesterov", "adam", "adamw", "RMSprop", "Rprop"],
)
def test_optimisers_are_those_of_torch(settings, make):
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, config(**{"learning_rate": 0.01, "weight_decay": 0.02, **settings}))
    assert torch.equal(trained(ours, optimizer), trained(theirs, make(theirs.parameters())))


def test_norms_and_biases_without_decay():
    net = network()
    optimizer = build_optimizer(net, config(decay_norms=False, weight_decay=0.02))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 0.02, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.02, "3.bias": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"optimizer": "torch.optim.Adamm"}, "torch.optim.Adam"),
        ({"optimizer": "os.system"}, "unknown optimiser"),
        ({"optimizer": "torch.optim.Optimizer"}, "unknown optimiser"),
        ({"optimizer": "torch.optim.LBFGS"}, "optimizer: torch.optim.LBFGS does not fit"),
        ({"optimizer": "torch.optim.Rprop", "weight_decay": 0.1}, "weight_decay: torch.optim.Rprop has no"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum: adam has no such argument"),
        ({"optimizer_options": {"beta": 1}}, "unknown argument 'beta'"),
        ({"optimizer_options": {"lr": 1}}, "unknown argument 'lr'"),
        ({"optimizer_options": {"params": []}}, "unknown argument 'params'"),
        ({"optimizer": "adam", "optimizer_options": {"betas": [2, 3]}}, "adam refuses them"),
        ({"optimizer": "adam", "optimizer_options": {"betas": "x"}}, "adam refuses them"),
    ],
    ids=str,
)
def test_bad_optimisers(settings, message):
    with pytest.raises(InputError, match=message):
        build_optimizer(network(), config(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True, "momentum": 0}, "nesterov"),
        ({"learning_rate_min": 1.0}, "learning_rate_min: expected at most learning_rate"),
        ({"warmup_epochs": E}, "warmup_epochs: expected fewer than epochs"),
        ({"linear_tail": 2}, "linear_tail: needs the schedule linear"),
        ({"linear_tail": E, "schedule": "linear"}, "linear_tail"),
        ({"schedule": "step"}, "schedule_epochs: step needs one number"),
        ({"schedule": "step", "schedule_epochs": (1, 2)}, "schedule_epochs: step needs one number"),
        ({"schedule": "multistep"}, "schedule_epochs: multistep needs"),
        ({"schedule_epochs": (3,)}, "schedule_epochs: not used by the schedule cosine"),
        ({"schedule": "cosin"}, "schedule"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
    ids=str,
)
def test_schedules_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=message):
        config(**settings)


@pytest.mark.parametrize("optimizer", ["adam", "torch.optim.Rprop"])
def test_recorded_settings_are_accepted_again(optimizer):
    """A record holds all settings, also those that this optimiser has no use for: runs are loaded and resumed by it."""
    settings = config(optimizer=optimizer)
    assert config(**settings.settings()) == settings
    assert settings.with_settings(seed=1).seed == 1
