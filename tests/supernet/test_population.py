"""A population of architectures in one pass, and the ways of mixing candidates."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.errors import InputError
from bionas_fast.space import Candidate, Space, get_space
from bionas_fast.supernet import Mixture, SupernetOptions, build_supernet
from helpers.supernets import with_nodes
from helpers.tolerances import ENGINE_GRADIENTS, POPULATIONS, SAME_BITS, TOLERANCES

SHAPE = {"channels": 4, "cells": 3, "num_classes": 5, "in_channels": 2}


def built(engine, space="bionas", **settings):
    return build_supernet(space, engine=engine, seed=3, **{**SHAPE, **settings})


def both(space="bionas", nodes=2, **settings):
    """The two engines with the same weights, and statistics that are not those of the start."""
    space = with_nodes(space, nodes)
    modular = built("modular", space, **settings)
    with torch.no_grad():
        modular(2 * torch.randn(8, 2, 8, 8) + 1)
    stacked = built("stacked", space, **settings)
    stacked.load_modular(modular)
    return modular, stacked


def mixing_of(space, individuals, seed=0, sharp=3.0):
    generator = torch.Generator().manual_seed(seed)
    shape = individuals, len(space.edges), len(space.candidates)
    return {kind: torch.softmax(sharp * torch.randn(shape, generator=generator), -1) for kind in space.kinds}


@pytest.mark.parametrize("space", ["bionas", "bionas-hl-pc"])
@pytest.mark.parametrize("partial_channels", [1, 2])
def test_population_is_one_forward_each(space, partial_channels):
    modular, stacked = (
        net.double().eval()
        for net in both(space, options=SupernetOptions(mixture=Mixture(partial_channels=partial_channels)))
    )
    x = torch.randn(3, 2, 9, 7, dtype=torch.float64)
    mixing = {kind: own.double() for kind, own in mixing_of(modular.space, 2).items()}
    expected = modular.population(x, mixing)
    assert expected.shape == (2, 3, 5)
    each = [modular(x, {kind: own[i] for kind, own in mixing.items()}) for i in range(2)]
    torch.testing.assert_close(expected, torch.stack(each), **SAME_BITS)
    torch.testing.assert_close(stacked.population(x, mixing), expected, **POPULATIONS)


def test_population_in_single_precision():
    modular, stacked = (net.eval() for net in both(channels=5))
    x = torch.randn(4, 2, 8, 8)
    mixing = mixing_of(modular.space, 6)
    reference = modular.double().population(x.double(), {kind: own.double() for kind, own in mixing.items()})
    torch.testing.assert_close(stacked.population(x, mixing).double(), reference, **TOLERANCES[torch.float32])


def test_a_large_population_is_taken_in_parts(monkeypatch):
    _, stacked = both(nodes=4)
    stacked.eval()
    x, mixing = torch.randn(3, 2, 8, 8), mixing_of(stacked.space, 5)
    whole = stacked.population(x, mixing)
    monkeypatch.setattr("bionas_fast.supernet.stacked.LARGEST_MAP", 2 * 3 * 64 * 16)
    calls = []
    forward = stacked.stem.forward
    monkeypatch.setattr(stacked.stem, "forward", lambda x: calls.append(len(x)) or forward(x))
    torch.testing.assert_close(stacked.population(x, mixing), whole)
    assert len(calls) == 3


@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_population_refuses(engine):
    net = built(engine)
    x, mixing = torch.randn(2, 2, 8, 8), mixing_of(net.space, 2)
    with pytest.raises(InputError, match=r"eval\(\)"):
        net.population(x, mixing)
    net.eval()
    with pytest.raises(InputError, match=r"mixing\['reduce'\].*\[individuals, 14, 22\], got nothing"):
        net.population(x, {"normal": mixing["normal"]})
    with pytest.raises(InputError, match=r"got \[14, 22\]"):
        net.population(x, {kind: own[0] for kind, own in mixing.items()})


@pytest.mark.parametrize(
    "mixture",
    [
        Mixture(factorised=True),
        Mixture(edge_normalisation=True),
        Mixture(partial_channels=2),
        Mixture(factorised=True, edge_normalisation=True, partial_channels=4),
    ],
    ids=lambda mixture: "-".join(str(value) for value in vars(mixture).values()),
)
def test_engines_agree(mixture):
    modular, stacked = (net.double() for net in both(options=SupernetOptions(mixture=mixture)))
    with torch.no_grad():
        for p, q in zip(modular.alpha_parameters(), stacked.alpha_parameters(), strict=True):
            p.copy_(torch.randn_like(p))
            q.copy_(p)
    x, y = torch.randn(4, 2, 9, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    outs = [net(x) for net in (modular, stacked)]
    torch.testing.assert_close(*outs, **POPULATIONS)
    for out in outs:
        F.cross_entropy(out, y).backward()
    for p, q in zip(modular.alpha_parameters(), stacked.alpha_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **ENGINE_GRADIENTS)
    torch.testing.assert_close(modular.stem[0].weight.grad, stacked.stem[0].weight.grad, **ENGINE_GRADIENTS)
    assert stacked.genotype() == modular.genotype()


def test_factorised_alphas_add_up():
    net = built("modular", options=SupernetOptions(mixture=Mixture(factorised=True)))
    space = net.space
    assert {name: tuple(p.shape) for name, p in net.alphas.items()} == {
        "normal_operation": (14, 8),
        "normal_rule": (14, 5),
        "reduce_operation": (14, 8),
        "reduce_rule": (14, 5),
    }
    with torch.no_grad():
        for p in net.alpha_parameters():
            p.copy_(torch.randn_like(p))
    operations = list(dict.fromkeys(c.operation for c in space.candidates))
    rules = list(dict.fromkeys(c.rule for c in space.candidates))
    for kind, logits in net.architecture.logits().items():
        for e in range(14):
            for k, candidate in enumerate(space.candidates):
                expected = net.alphas[f"{kind}_operation"][e, operations.index(candidate.operation)]
                expected = expected + net.alphas[f"{kind}_rule"][e, rules.index(candidate.rule)]
                assert logits[e, k] == expected


def test_edge_normalisation():
    """PC-DARTS: a node's edges share 1 by softmax(beta), and the genotype goes by alpha times beta."""
    net = built("modular", options=SupernetOptions(mixture=Mixture(edge_normalisation=True)))
    with torch.no_grad():
        for p in net.alpha_parameters():
            p.copy_(torch.randn_like(p))
    mixing = net.architecture.mixing()["normal"]
    beta = net.architecture.betas["normal"]
    row = 0
    for node in range(4):
        edges = slice(row, row + node + 2)
        shares = torch.softmax(beta[edges], 0)
        torch.testing.assert_close(mixing[edges].sum(-1), shares)
        expected = torch.softmax(net.alphas["normal"][edges], -1) * shares[:, None]
        torch.testing.assert_close(mixing[edges], expected)
        best = expected[:, 1:].max(-1).values.topk(2).indices
        assert {edge.source for edge in net.genotype().normal.nodes[node]} == set(best.tolist())
        row += node + 2


def test_partial_channels_of_one_edge():
    """A quarter passes the candidates, the others bypass them and are dealt between them (PC-DARTS, section 3.1)."""
    from bionas_fast.supernet.mixed_op import MixedOp

    space = Space("skip", (Candidate("none"), Candidate("skip_connect", "bp")))
    x = torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 4, 4)
    out = MixedOp(space.candidates, 8, 1, partial_channels=4)(x, torch.tensor([0.0, 10.0]))
    # Channels 0 and 1 pass the skip, 2 to 7 bypass the candidates; then one of each group of two, in turn.
    assert (out[0, :, 0, 0] / 10).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    halved = MixedOp(space.candidates, 8, 2, partial_channels=4)(torch.randn(1, 8, 5, 7), torch.ones(2))
    assert halved.shape == (1, 8, 3, 4)


def test_auxiliary_skip_is_added():
    net = built("modular").double()
    plain = net.architecture.mixing()
    skips = [k for k, c in enumerate(net.space.candidates) if c.operation == "skip_connect"]
    for kind, weights in net.architecture.mixing(auxiliary_skip=0.6).items():
        difference = weights - plain[kind]
        torch.testing.assert_close(difference.sum(-1), torch.full((14,), 0.6, dtype=torch.float64))
        assert set(difference.nonzero()[:, 1].tolist()) == set(skips)
    bare = build_supernet(get_space("bionas").restricted((), ("sep_conv_3x3",)), **SHAPE)
    with pytest.raises(InputError, match="no skip_connect"):
        bare.architecture.mixing(auxiliary_skip=0.5)


def test_bad_mixtures():
    with pytest.raises(InputError, match="partial_channels: expected at least 1, got 0"):
        Mixture(partial_channels=0)
    with pytest.raises(InputError, match="channels: expected a multiple of partial_channels 4, got 6"):
        built("stacked", channels=6, options=SupernetOptions(mixture=Mixture(partial_channels=4)))


def test_mixing_may_be_given():
    net = bf.build_supernet(**SHAPE)
    x = torch.randn(4, 2, 8, 8)
    net.eval()
    torch.testing.assert_close(net(x, net.architecture.mixing()), net(x))
