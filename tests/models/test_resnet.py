"""Residual networks: published sizes, shapes, torchvision's own networks, the rule on every layer."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.models import RESNETS
from bionas_fast.nn import FeedbackLayer


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_published_number_of_parameters(name, published):
    """He et al. 2016, table 6, in millions."""
    count = sum(p.numel() for p in bf.build_resnet(name).parameters()) / 1e6
    assert round(count, 2 if published < 1 else 1) == published


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (56, 9)])
def test_depth_is_that_of_the_name(depth, blocks):
    layers = [m for m in bf.build_resnet(f"resnet{depth}").modules() if isinstance(m, FeedbackLayer)]
    assert len(layers) == depth == 6 * blocks + 2


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_under_bp_it_is_torchvision_s_network(name):
    torch.manual_seed(3)
    original = getattr(torchvision.models, name)(num_classes=7)
    ours = bf.build_resnet(name, num_classes=7, seed=3)
    assert ours.state_dict().keys() == original.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), original.eval()(x))


@pytest.mark.parametrize("name", RESNETS)
def test_a_single_channel_and_every_layer_under_the_rule(name):
    net = bf.build_resnet(name, rule="usf", num_classes=5, in_channels=1)
    assert {m.rule for m in net.modules() if isinstance(m, FeedbackLayer)} == {"usf"}
    assert not [m for m in net.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    if name != "resnet110":
        assert net(torch.randn(2, 1, 33, 17)).shape == (2, 5)


def test_shortcuts_subsample_and_pad_channels_with_zeros():
    from bionas_fast.models.resnet import BasicBlock

    block = BasicBlock(2, 6, 2).eval()
    nn.init.zeros_(block.bn2.weight)  # no residual
    x = torch.rand(3, 2, 5, 4)
    expected = torch.zeros(3, 6, 3, 2)
    expected[:, 2:4] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_seeds_initialisation_and_the_global_generator():
    before = torch.get_rng_state()
    nets = [bf.build_resnet("resnet20", rule="fa", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    first, same, other = (net.state_dict() for net in nets)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.feedback"], other["0.feedback"])
    xavier = bf.build_resnet("resnet20", rule="fa", initialisation="xavier").state_dict()["0.weight"]
    bound = (6 / (27 + 144)) ** 0.5  # fan_in 3 · 9, fan_out 16 · 9
    assert 0.9 * bound < xavier.abs().max() <= bound


def test_direct_feedback_trains_it():
    net = bf.build_resnet("resnet20", rule="dfa", num_classes=4)
    net(torch.randn(2, 3, 8, 8)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet21"}, "resnet20"),
        ({"name": "resnet20", "rule": "uzf"}, "usf"),
        ({"name": "resnet20", "num_classes": 0}, "num_classes: expected at least 1"),
        ({"name": "resnet18", "in_channels": -1}, "in_channels: expected at least 1"),
        ({"name": "resnet20", "initialisation": "xavierr"}, "xavier"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        bf.build_resnet(**arguments)
