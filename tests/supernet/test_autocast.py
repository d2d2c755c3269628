"""Mixed precision: mixing weights and their gradients stay float32 in both engines, maps become narrow."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bionas_fast as bf
from bionas_fast.space import get_space
from bionas_fast.supernet import Mixture, SupernetOptions
from bionas_fast.supernet.mixed_op import MixedOp
from bionas_fast.supernet.stacked_edges import StackedEdges
from helpers.native import needs_native
from helpers.rounded_factors import RoundedFactors
from helpers.tolerances import NARROW_EDGES, NARROW_MAPS, REORDERED_FLOAT32, SAME_BITS

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


def run_edges(dtype: torch.dtype | None, backend: str | None = None) -> list[Tensor]:
    """The sums of two batched edges, and the gradients of the mixing weights and of the weights."""
    edges = StackedEdges([mixed_op(), mixed_op()], 1)
    weights = close_weights(2 * len(mixed_op().candidates)).view(2, -1).requires_grad_()
    x = torch.randn(4, 6, 6, 8)
    with bf.use_backend(backend) if backend else nullcontext(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        sums = edges(x, edges.prepare(weights), [None, None])
        return [*sums, *torch.autograd.grad(sum(own.square().sum() for own in sums), [weights, edges.bank.weight])]


def test_batched_edges_store_maps_in_bfloat16():
    """Only maps are rounded: results are float32, near those without autocast and not bfloat16 numbers."""
    for ours, wanted in zip(run_edges(torch.bfloat16), run_edges(None), strict=True):
        assert ours.dtype == torch.float32
        assert 1e-4 < (ours - wanted).norm() / wanted.norm() < NARROW_MAPS
        assert (ours.bfloat16().float() == ours).float().mean() < 0.05


@needs_native
def test_batched_edges_are_those_of_the_reference(isa):
    with RoundedFactors() if isa == "avx512_bf16" else nullcontext():
        expected = run_edges(torch.bfloat16, "reference")
    for ours, wanted in zip(run_edges(torch.bfloat16), expected, strict=True):
        assert (ours - wanted).norm() < NARROW_EDGES * wanted.norm()


def test_batched_edges_do_not_see_autocast_to_float16():
    for ours, wanted in zip(run_edges(torch.float16), run_edges(None), strict=True):
        torch.testing.assert_close(ours, wanted, **SAME_BITS)


class Calls(TorchDispatchMode):
    """Counts the calls of compiled operators by name and dtype of their first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "bionas_fast_native":
            first = next(own for own in tree_leaves(args) if isinstance(own, Tensor))
            self.counts[function.name().split("::")[1], first.dtype] += 1
        return function(*args, **(kwargs or {}))


@needs_native
def test_a_step_runs_the_compiled_kernels_and_saves_half_the_bytes():
    """Of every state of every cell, in both passes; what is saved besides maps is small."""
    net = bf.build_supernet(space="bionas", channels=16, cells=2, in_channels=1, engine="stacked", seed=0)
    states = sum(isinstance(module, StackedEdges) for module in net.modules())
    x, saved, counts = torch.randn(8, 1, 16, 16), [], []
    for enabled in (False, True):
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with Calls() as calls:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled), hooks:
                loss = F.cross_entropy(net(x), torch.arange(8))
            loss.backward()
        own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
        saved.append(sum(size for address, size in sizes.items() if address not in own))
        counts.append(calls.counts)
    for dtype, count in zip((torch.float32, torch.bfloat16), counts, strict=True):
        assert count["separable_edges", dtype] == states
        assert count["pooling", dtype] == 2 * states  # computed again for the backward pass
        assert count["separable_edges_backward", torch.float32] == states  # gradients come first
    assert saved[1] < 0.52 * saved[0]


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
