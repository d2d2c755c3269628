"""The modular supernet: its shape, its parameters, and the differences of its candidates."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.ops.factorized_reduce import rectified_grids
from bionas_fast.space import get_space
from bionas_fast.space.operations import FactorizedReduce, Skip
from bionas_fast.supernet import SupernetOptions
from bionas_fast.supernet.mixed_op import MixedOp
from helpers.supernets import with_nodes
from helpers.tolerances import SAME_BITS

SPACE = get_space("bionas")


def small(**settings):
    return bf.build_supernet(**{"channels": 2, "cells": 3, "in_channels": 1, "engine": "modular", **settings})


def test_shapes_and_parameters():
    net = small(num_classes=7)
    assert {kind: tuple(alpha.shape) for kind, alpha in net.alphas.items()} == {"normal": (14, 22), "reduce": (14, 22)}
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    weights, alphas = set(net.weight_parameters()), set(net.alpha_parameters())
    assert not weights & alphas
    assert weights | alphas == set(net.parameters())
    assert {"architecture.alphas.normal", "architecture.alphas.reduce"} <= set(net.state_dict())
    assert all(alpha.abs().max() < 0.01 for alpha in alphas)


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_reductions(cells):
    kinds = [cell.kind for cell in small(cells=cells, channels=1).cells]
    assert [i for i, kind in enumerate(kinds) if kind == "reduce"] == sorted({cells // 3, 2 * cells // 3})


@pytest.mark.parametrize("size", [(9, 7), (5, 8), (3, 3)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_sizes_and_any_channels(size, channels):
    net = small(channels=channels, in_channels=2)
    x = torch.randn(2, 2, *size, requires_grad=True)
    net(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(alpha.grad.abs().sum() > 0 for alpha in net.alpha_parameters())


def test_batch_of_one():
    net = small()
    assert net(torch.randn(1, 1, 16, 16)).isfinite().all()


def test_every_candidate_has_weights_of_its_own():
    op = MixedOp(SPACE.candidates, 4, 1)
    first = [c[0][1].weight for k, c in enumerate(op.candidates) if SPACE.candidates[k].operation == "sep_conv_3x3"]
    assert len(first) == 4
    for a, b in itertools.pairwise(first):
        assert not torch.equal(a, b)


def test_mixed_op_is_the_weighted_sum():
    torch.manual_seed(0)
    op = MixedOp(SPACE.candidates, 4, 2).double()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    weights = torch.rand(22, dtype=torch.float64)
    expected = sum(w * c(x) for w, c in zip(weights, op.candidates, strict=True))
    torch.testing.assert_close(op(x, weights), expected)


@pytest.mark.parametrize("rule", ["usf", "brsf", "frsf", "fa", "bp"])
def test_skip_is_an_identity_whose_error_follows_its_rule(rule):
    skip = Skip(64, rule)
    x = torch.randn(2, 64, 3, 3, requires_grad=True)
    out = skip(x)
    assert torch.equal(out, x)
    grad = torch.randn_like(out)
    b = skip.feedback_weight().reshape(1, 64, 1, 1)
    out.backward(grad)
    torch.testing.assert_close(x.grad, grad * b, **SAME_BITS)
    if rule in ("usf", "bp"):
        assert torch.equal(x.grad, grad)
    if rule in ("brsf", "frsf"):
        assert b.min() >= 0
        assert b.max() < 2
        assert b.mean() == pytest.approx(1, abs=0.25)  # 64 draws of U(0, 2): standard error 0.07
        assert torch.equal(skip.feedback_weight().reshape_as(b), b) == (rule == "frsf")


@pytest.mark.parametrize("skip_rules", [True, False])
def test_strided_skips_use_their_rule(skip_rules):
    net = small(options=SupernetOptions(skip_rules=skip_rules))
    reduce_edge = net.cells[1].edges[0]
    skips = [m for m in reduce_edge.candidates if isinstance(m, FactorizedReduce)]
    assert [m.conv1.rule for m in skips] == (["usf", "brsf", "frsf"] if skip_rules else ["bp"] * 3)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (8, 7), (5, 5), (1, 4), (1, 1)], ids=str)
def test_factorized_reduce_by_pixels(size):
    """conv1 sees the even pixels, conv2 the odd ones; past the border there are zeros."""
    torch.manual_seed(0)
    layer = FactorizedReduce(3, 5, "bp", affine=False).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    padded = F.pad(x.clamp(min=0), (0, 2, 0, 2))
    height, width = (size[0] + 1) // 2, (size[1] + 1) // 2
    for i in range(height):
        for j in range(width):
            expected = torch.cat(
                [
                    padded[:, :, 2 * i, 2 * j] @ layer.conv1.weight.flatten(1).T,
                    padded[:, :, 2 * i + 1, 2 * j + 1] @ layer.conv2.weight.flatten(1).T,
                ],
                dim=1,
            )
            torch.testing.assert_close(layer(x)[:, :, i, j], expected / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("size", [(4, 6), (5, 5), (2, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["", "channels_last"])
def test_gradients_of_grids(size, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(rectified_grids, (x,))


def test_seed_decides_everything_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (small(seed=seed, space=with_nodes("bionas", 2)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(a.stem[0].weight, c.stem[0].weight)


def test_fixed_rules():
    net = small(options=SupernetOptions(fixed={"stem": "usf", "preprocess": "fa", "head": "brsf"}))
    assert net.stem[0].rule == "usf"
    assert net.cells[0].preprocess0[1].rule == "fa"
    assert net.cells[2].preprocess0.conv2.rule == "fa"
    assert net.classifier.rule == "brsf"
    assert net.genotype().fixed == {"stem": "usf", "preprocess": "fa", "head": "brsf"}


def test_state_dict_carries_alphas_and_streams():
    x = torch.randn(4, 1, 8, 8)
    a, b = (small(seed=seed, space=with_nodes("bionas", 2)) for seed in (1, 2))
    a(x).sum().backward()
    b.load_state_dict(a.state_dict())
    for _ in range(2):
        for net in (a, b):
            net.zero_grad()
            net(x).square().sum().backward()
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "bionass"}, "'bionass'.*'bionas'"),
        ({"engine": "modullar"}, "'modullar'.*'modular'"),
        ({"channels": 0}, "channels.*0"),
        ({"cells": 0}, "cells.*0"),
        ({"options": SupernetOptions(fixed={"head": "bpp"})}, r"fixed\.head.*'bpp'"),
    ],
    ids=str,
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        small(**settings)


def test_bad_images():
    with pytest.raises(InputError, match=r"x: expected images \[N, 1, H, W\].*\[2, 3, 8, 8\]"):
        small(cells=1)(torch.randn(2, 3, 8, 8))
