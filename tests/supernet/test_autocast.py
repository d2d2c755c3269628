"""Mixed precision: mixing weights and their gradients stay float32 in both engines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.space import get_space
from bionas_fast.supernet import Mixture, SupernetOptions
from bionas_fast.supernet.mixed_op import MixedOp
from bionas_fast.supernet.stacked_edges import StackedEdges
from helpers.tolerances import REORDERED_FLOAT32, SAME_BITS

OPERATIONS = ("skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_5x5")


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def mixed_op(partial_channels: int = 1) -> MixedOp:
    torch.manual_seed(0)
    candidates = get_space("bionas").restricted(("usf", "bp"), OPERATIONS).candidates
    return MixedOp(candidates, 8, 1, partial_channels).eval()


def close_weights(count: int) -> Tensor:
    """Weights 0.1 % apart, as those of the first steps: bfloat16 does not tell them apart."""
    weights = (1 + 1e-3 * torch.arange(count)) / count
    assert len(weights.bfloat16().unique()) < count / 2
    return weights


@pytest.mark.parametrize("partial_channels", [1, 2])
def test_sums_of_modules_are_float32(partial_channels):
    """The maps that autocast computes, mixed in float64: values, and gradients of the mixing weights."""
    edge, x = mixed_op(partial_channels), torch.randn(4, 8, 6, 6)
    weights = close_weights(len(edge.candidates)).requires_grad_()
    with bf16():
        passed = x[:, : edge.channels]
        maps = torch.stack([candidate(passed) for candidate in edge.candidates]).detach()
        out = edge(x, weights)
    wanted = torch.einsum("k,k...->...", weights.detach().double(), maps.double())
    upstream = torch.randn_like(out)
    own = upstream
    if partial_channels > 1:  # undo the shuffle
        out, own = (t.unflatten(1, (-1, partial_channels))[:, :, 0] for t in (out, upstream))
    assert out.dtype == torch.float32
    assert (out - wanted).norm() < REORDERED_FLOAT32 * wanted.norm()
    (grad,) = torch.autograd.grad((out * own).sum(), weights)
    of_maps = torch.einsum("k...,...->k", maps.double(), own.double())
    assert (grad - of_maps).norm() < REORDERED_FLOAT32 * of_maps.norm()


def test_batched_edges_do_not_see_autocast():
    edges = StackedEdges([mixed_op(), mixed_op()], 1)
    weights = close_weights(2 * len(mixed_op().candidates)).view(2, -1).requires_grad_()
    x, results = torch.randn(4, 6, 6, 8), []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sums = edges(x, edges.prepare(weights), [None, None])
        grads = torch.autograd.grad(sum(own.square().sum() for own in sums), [weights, edges.bank.weight])
        results.append([*sums, *grads])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, **SAME_BITS)


def test_populations_do_not_see_autocast():
    """The same maps are mixed with the weights in float32."""
    edges, x = StackedEdges([mixed_op(), mixed_op()], 1).eval(), torch.randn(3, 6, 6, 8)
    weights = close_weights(4 * len(mixed_op().candidates)).view(2, 2, -1)
    wanted = edges.population(x, weights, shared=True)
    with bf16():
        ours = edges.population(x, weights, shared=True)
    for own, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(own, other, **SAME_BITS)


@pytest.mark.parametrize("space", ["bionas", "bionas-hl-pc"])
@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_gradients_of_a_supernet_are_not_rounded(engine, space):
    """With edge normalisation and channels that bypass the candidates; rounded ones would be bfloat16 numbers."""
    options = SupernetOptions(mixture=Mixture(edge_normalisation=True, partial_channels=2))
    net = bf.build_supernet(space=space, channels=4, cells=1, in_channels=1, engine=engine, seed=0, options=options)
    mixing = {kind: own.detach().requires_grad_() for kind, own in net.architecture.mixing().items()}
    with bf16():
        loss = F.cross_entropy(net(torch.randn(8, 1, 6, 6), mixing), torch.arange(8))
    (grad,) = torch.autograd.grad(loss, [mixing["reduce"]])
    grad = grad[grad != 0]
    assert grad.dtype == torch.float32
    assert (grad.bfloat16().float() == grad).float().mean() < 0.05
