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


def test_fasthebb_learns_by_its_formula():
    """ΔW = (YᵀX - tril(YᵀY) W) / P in float64 with Y = ReLU(XWᵀ); then ReLU, pool and BN, of every block in turn."""
    net = bf.build_softhebb("fasthebb", rule="hpca_relu", seed=1)
    assert [block[0].weight.shape[1:] for block in net.blocks] == [
        (3, 5, 5),
        (96, 3, 3),
        (128, 3, 3),
        (192, 3, 3),
        (256, 3, 3),
    ]
    assert [block[0].weight.shape[0] for block in net.blocks] == [96, 128, 192, 256, 4096]
    assert net.features(torch.randn(2, 3, 32, 32)).shape == (2, 4096, 1, 1)
    small = tuple(block._replace(filters=5) for block in ARCHITECTURES["fasthebb"])
    shape = {"rule": "hpca_relu", "in_channels": 3, "num_classes": 4, "dropout": 0.0}
    net = SoftHebbNetwork(small, image_size=(34, 32), **shape).double()
    x = torch.randn(6, 3, 34, 32, dtype=torch.float64)
    for number, block in enumerate(net.blocks):
        w = block[0].plasticity.flatten(1).clone()
        out = block(x)
        rows = F.unfold(x, block[0].kernel_size).transpose(1, 2).flatten(0, 1)
        y = (rows @ w.t()).relu()
        assert_close(block[0].plasticity.flatten(1), w + 1e-3 * (y.t() @ rows - (y.t() @ y).tril() @ w) / len(rows))
        expected = (
            y.view(6, -1, 5)
            .transpose(1, 2)
            .unflatten(2, [n - k + 1 for n, k in zip(x.shape[2:], block[0].kernel_size, strict=True)])
        )
        if number in (0, 2):
            expected = F.max_pool2d(expected, 2)
        mean, var = expected.mean((0, 2, 3), keepdim=True), expected.var((0, 2, 3), correction=0, keepdim=True)
        assert_close(out, (expected - mean) / (var + 1e-5).sqrt())
        x = out
    assert x.shape == (6, 5, 1, 1)
    with pytest.raises(InputError, match="image_size: 17×32 is too small for 5 blocks"):
        bf.build_softhebb("fasthebb", image_size=(17, 32))
