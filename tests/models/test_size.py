"""The size of networks, against torchvision's published counts and those of the published genotype."""

from __future__ import annotations

import pytest
from torchvision.models import ResNet18_Weights, ResNet50_Weights

import bionas_fast as bf
from bionas_fast.models import measure_size
from bionas_fast.space import published
from helpers.genotypes import GENOTYPE


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet18", ResNet18_Weights.DEFAULT), ("resnet50", ResNet50_Weights.DEFAULT)]
)
@pytest.mark.parametrize("rule", ["bp", "usf"])
def test_counts_of_torchvision(name, weights, rule):
    network = bf.build_resnet(name, rule=rule, num_classes=1000)
    size = measure_size(network, (3, 224, 224))
    assert size.parameters == weights.meta["num_params"]
    assert round(size.operations / 1e9, 3) == weights.meta["_ops"]
    assert set(size.shares) == {rule, "elementwise"}
    assert network.training


def test_shares_of_the_published_genotype():
    """Of the weights of convolutions and linear layers 48.1, 27.0 and 25.0 % learn by bp, usf and frsf."""
    network = bf.build_network(published("biodarts2").genotype, auxiliary=True)
    size = measure_size(network, (3, 32, 32))
    assert round(size.parameters / 1e6, 3) == 2.868
    assert size.auxiliary == sum(p.numel() for p in network.auxiliary.parameters())
    carried = size.parameters - size.weights["elementwise"]
    shares = {rule: round(100 * size.weights[rule] / carried, 1) for rule in ("bp", "usf", "frsf")}
    assert shares == {"bp": 48.1, "usf": 27.0, "frsf": 25.0}
    assert list(size.weights.values()) == sorted(size.weights.values(), reverse=True)
    assert sum(size.shares.values()) == pytest.approx(1)


def test_plastic_weights_count():
    network = bf.build_softhebb("mnist", in_channels=1, image_size=(28, 28))
    size = measure_size(network, (1, 28, 28))
    plastic = sum(b.numel() for name, b in network.named_buffers() if name.endswith("plasticity"))
    assert size.weights["hebbian"] == plastic
    assert size.parameters == plastic + sum(p.numel() for p in network.parameters())


def test_the_mode_is_restored_and_no_statistic_moves():
    network = bf.build_network(GENOTYPE, channels=2, cells=3).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_size(network, (3, 8, 8))
    assert not network.training
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
