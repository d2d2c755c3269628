"""Laws of initial weights of genotype networks and supernets, against the bounds of the two formulas."""

from __future__ import annotations

import math

import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.models import NetworkOptions
from bionas_fast.nn import Conv2d
from bionas_fast.supernet import SupernetOptions
from helpers.genotypes import GENOTYPE


def bounds(layer: Conv2d) -> dict[str, float]:
    """The bounds of Xavier's and of PyTorch's uniform law for the weights of a convolution."""
    outputs, inputs, *kernel = layer.weight.shape
    fan_in, fan_out = inputs * math.prod(kernel), outputs * math.prod(kernel)
    return {"xavier": math.sqrt(6 / (fan_in + fan_out)), "default": 1 / math.sqrt(fan_in)}


def follows(layer: Conv2d, law: str) -> bool:
    """Whether the largest of many uniform weights is just below the bound; only one law can fit."""
    bound, largest = bounds(layer)[law], float(layer.weight.detach().abs().max())
    return largest <= bound and largest > bound * (1 - 20 / layer.weight.numel())


@pytest.mark.parametrize("law", ["xavier", "published"])
@pytest.mark.parametrize("rule", ["bp", "usf"])
def test_only_layers_with_a_rule_have_the_published_law(law, rule):
    genotype = GENOTYPE.with_rule(rule)
    net = bf.build_network(genotype, channels=16, cells=3, auxiliary=True, options=NetworkOptions(initialisation=law))
    told = 0
    for layer in net.modules():
        if isinstance(layer, Conv2d):
            own, other = ("xavier", "default") if law == "xavier" or layer.rule != "bp" else ("default", "xavier")
            assert follows(layer, own)
            told += abs(math.log(bounds(layer)["xavier"] / bounds(layer)["default"])) > 0.2 and not follows(
                layer, other
            )
    assert told > 5


@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_supernets_have_the_law_in_their_fixed_layers(engine):
    options = SupernetOptions(initialisation="published")
    net = bf.build_supernet("darts-bp", channels=16, cells=1, engine=engine, options=options)
    stem = net.stem[0]
    assert follows(stem, "default")
    assert not follows(stem, "xavier")
    paper = bf.build_supernet("darts-bp", channels=16, cells=1, engine=engine)
    assert follows(paper.stem[0], "xavier")


def test_both_engines_draw_the_published_law_from_the_same_seed():
    options = SupernetOptions(initialisation="published")
    nets = [
        bf.build_supernet("darts-bp", channels=2, cells=1, engine=engine, options=options).eval()
        for engine in ("modular", "stacked")
    ]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(nets[0](x), nets[1](x))


def test_an_unknown_law_is_refused():
    with pytest.raises(InputError, match=r"initialisation 'xavir'; did you mean 'xavier'"):
        bf.build_network(GENOTYPE, options=NetworkOptions(initialisation="xavir"))
