"""SoftHebb networks: five blocks, and blocks that learn principal components."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.models.softhebb import ARCHITECTURES, SoftHebbNetwork
from helpers.tolerances import assert_close


def test_five_blocks():
    blocks = ARCHITECTURES["imagenette"]
    assert [block.filters for block in blocks] == [48, 192, 768, 3072, 12288]
    small = tuple(block._replace(filters=2) for block in blocks)
    shape = {"rule": "softhebb", "in_channels": 3, "num_classes": 4, "dropout": 0.0}
    torch.manual_seed(0)
    net = SoftHebbNetwork(small, image_size=(32, 40), **shape)
    before = [block[1].plasticity.clone() for block in net.blocks]
    assert net.features(torch.randn(5, 3, 32, 40)).shape == (5, 2, 1, 1)
    assert all(not torch.equal(block[1].plasticity, old) for block, old in zip(net.blocks, before, strict=True))
    # Before the filters, which would take gigabytes, are made.
    with pytest.raises(InputError, match="image_size: 16×16 is too small for 5 blocks"):
        bf.build_softhebb("imagenette", image_size=(16, 16))


def test_components_learn_by_their_formula():
    """ΔW = (YᵀX - tril(YᵀY) W) / P in float64, of the normalised patches with reflected borders."""
    net = bf.build_softhebb("mnist", rule="hpca", in_channels=2, image_size=(8, 8), seed=1).double()
    _, layer, activation, _ = net.blocks[0]
    assert type(activation) is nn.ReLU
    w = layer.plasticity.flatten(1).clone()
    assert_close(w.norm(dim=1).float(), torch.ones(32))
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    net.blocks[0](x)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    padded = F.pad((x - mean) / (var + 1e-5).sqrt(), (2, 2, 2, 2), mode="reflect")
    rows = F.unfold(padded, 5).transpose(1, 2).flatten(0, 1)
    y = rows @ w.t()
    moved = w + 0.01 * (y.t() @ rows - (y.t() @ y).tril() @ w) / len(rows)
    assert_close(layer.plasticity.flatten(1), moved)
