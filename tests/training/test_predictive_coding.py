"""Predictive-coding networks against formulas in float64, and against back-propagation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.training.predictive_coding import predictive_coding
from helpers.tolerances import assert_close

N, CLASSES = 5, 3
SIZE = {"num_classes": CLASSES, "in_channels": 2, "image_size": (4, 6)}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 2, 4, 6, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad for p in net.parameters()]


def by_back_propagation(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([g.flatten() for g in grads])


def test_two_steps_of_one_hidden_layer_by_hand():
    (x, y), net, rate = batch(), bf.build_plain("mlp", widths=(7,), **SIZE).double(), 0.3
    loss, logits = predictive_coding(net, x, y, 0.5, steps=2, rate=rate)
    w1, b1, w2, b2 = (p.detach() for p in net.parameters())
    flat, onehot = x.flatten(1), F.one_hot(y, CLASSES).double()
    predicted = (flat @ w1.t() + b1).relu()
    h = predicted
    for _ in range(2):
        h = h - rate * (h - predicted + ((h @ w2.t() + b2).softmax(1) - onehot) @ w2)
    error = (h @ w2.t() + b2).softmax(1) - onehot
    local = (predicted - h) * (predicted > 0)
    wanted = [local.t() @ flat, local.sum(0), error.t() @ h, error.sum(0)]
    for actual, expected in zip(gradients(net), wanted, strict=True):
        assert_close(actual, 0.5 * expected / N)
    assert_close(logits, predicted @ w2.t() + b2)
    assert_close(loss, F.cross_entropy(logits, y))


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_at_equilibrium_it_is_back_propagation_to_first_order(name):
    """The difference is of the order of the nudge, without which no activity moves."""
    x, y = batch()
    if name == "linear":
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.Linear(9, 8), nn.Linear(8, CLASSES)).double()
    else:
        net = bf.build_plain("cnn", widths=(4, 5), **SIZE).double()
    wanted, differences = by_back_propagation(net, x, y), []
    for nudge in (1e-3, 1e-4):
        net.zero_grad()
        predictive_coding(net, x, y, 1.0, steps=400, rate=0.2, nudge=nudge)
        actual = torch.cat([g.flatten() for g in gradients(net)])
        differences.append(((actual - wanted).norm() / wanted.norm()).item())
    assert differences[0] < 2e-3
    assert math.log10(differences[0] / differences[1]) == pytest.approx(1, abs=0.05)


def test_without_steps_only_the_last_layer_learns():
    (x, y), net = batch(), bf.build_plain("cnn", widths=(4, 5), **SIZE).double()
    predictive_coding(net, x, y, 1.0, steps=0, rate=0.1)
    *below, weight, bias = gradients(net)
    assert not any(g.any() for g in below)
    expected = torch.autograd.grad(F.cross_entropy(net(x), y), [net[-1].weight, net[-1].bias])
    for actual, wanted in zip((weight, bias), expected, strict=True):
        assert_close(actual, wanted)


def test_a_training(tmp_path):
    config = bf.PlainConfig(trainer="pc", widths=(32, 32), epochs=4, batch_size=32)
    result = bf.train_plain(config, out=tmp_path / "run")
    assert result.test_accuracy > 85
    assert bf.rule_shares(bf.load(tmp_path / "run")) == {"predictive": 1.0}


def test_settings_that_do_not_fit():
    for settings, message in (
        ({"trainer": "pc", "rule": "usf"}, "rule: expected 'bp' with the trainer pc"),
        ({"trainer": "pc", "mixup": 0.2}, "mixup"),
        ({"inference_steps": 5}, "inference_steps: not used by the trainer end-to-end"),
    ):
        with pytest.raises(InputError, match=message):
            bf.PlainConfig(**settings)
