"""The kernels of the batched supernet, op by op, against their references and a matrix product."""

from __future__ import annotations

import pytest
import torch

from bionas_fast.backends import explain
from bionas_fast.kernels.records import (
    Prologue,
    SavedEdges,
    SeparablePlan,
    SeparableWeights,
    Stage,
    StageWeights,
    Terms,
)
from bionas_fast.kernels.separable_edges import composition
from bionas_fast.ops.mixed_edges.backends import find
from measuring import interleaved, matmul_peak, relative, show

RULES = 4
SHAPES = [(16, 32, 16), (16, 16, 32), (16, 8, 64)]  # batch, size, channels: the three widths of a search step


def fastest(device: str) -> str:
    chosen = explain("mixed_edges", device).backend
    if chosen == "reference":
        pytest.skip("no compiled kernels")
    return chosen


def stage(device: str, shape: tuple[int, int, int], stride: int = 1):
    """A first stage: both separable and both dilated convolutions under every rule. Its input, its weights, itself."""
    n, size, c = shape
    kernels = ((3,) * RULES + (5,) * RULES) * 2
    dilations = (1,) * 2 * RULES + (2,) * 2 * RULES
    generator = torch.Generator().manual_seed(0)

    def randn(*sizes):
        return torch.randn(*sizes, generator=generator).to(device)

    k = len(kernels)
    weights = StageWeights(randn(sum(x * x for x in kernels) * c) / 4, randn(k, c, c) / c**0.5)
    return randn(n, size, size, c), weights, Stage(kernels, dilations, stride)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "backward", "backward without weight gradients"])
def test_separable_stage(benchmark, report, device, shape, stride, direction):
    backends = {"fast": find(fastest(device)), "reference": find("reference")}
    fast, plain = backends.values()
    x, weights, geometry = stage(device, shape, stride)
    n, size, c = shape
    operations = sum(2.0 * n * (-(-size // stride)) ** 2 * c * (k * k + c) for k in geometry.kernels)
    z, _ = fast.stage_forward(x, weights, geometry)
    assert relative(z, plain.stage_forward(x, weights, geometry)[0]) < 1e-4
    if direction == "forward":
        steps = {name: (lambda k=k: k.stage_forward(x, weights, geometry)) for name, k in backends.items()}
    else:
        wanted = direction == "backward"
        operations *= 1 + wanted
        grad, affine = torch.randn(z.shape[1:], device=device), torch.randn(3, len(z), c, device=device)
        given = (Prologue([grad] * len(z), z, *affine), x, weights, weights, geometry, None, wanted)
        for ours, theirs in zip(fast.stage_backward(*given), plain.stage_backward(*given), strict=True):
            assert ours.numel() == theirs.numel()
            assert not theirs.numel() or relative(ours, theirs) < 1e-4
        steps = {name: (lambda k=k: k.stage_backward(*given)) for name, k in backends.items()}
    product, product_operations = matmul_peak(device)
    times = interleaved({**steps, "product": product})
    share = operations / times["fast"] / (product_operations / times["product"])
    what = f"separable_stage {direction} {shape} stride {stride}, {fastest(device)}"
    report.add(
        what,
        f"{times['reference'] / times['fast']:6.2f} times as fast as reference "
        f"({1e3 * times['fast']:.2f} ms, {share:.0%} of a matrix product)",
    )
    show(benchmark, steps["fast"], times["fast"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_mixed_sum(benchmark, report, device, shape, direction):
    backends = {"fast": find(fastest(device)), "reference": find("reference")}
    n, size, c = shape
    maps = [torch.randn(64, n, size, size, c, device=device)]
    terms = Terms(tuple(range(64)), tuple(e for e in range(4) for _ in range(16)), 4)
    if direction == "forward":
        factors = torch.randn(64, c, device=device), torch.randn(4, c, device=device)
        steps = {name: (lambda k=k: k.sum_forward(maps, terms, *factors, [None] * 4)) for name, k in backends.items()}
    else:
        grads = list(torch.randn(4, n, size, size, c, device=device))
        steps = {name: (lambda k=k: k.sum_backward(grads, maps, terms)) for name, k in backends.items()}
    for ours, theirs in zip(steps["fast"](), steps["reference"](), strict=True):
        assert relative(ours, theirs) < 1e-4
    times = interleaved(steps)
    rate = maps[0].numel() * 4 / times["fast"] / 1e9
    report.add(
        f"mixed_sum {direction} {shape}, {fastest(device)}",
        f"{times['reference'] / times['fast']:6.2f} times as fast as reference "
        f"({1e3 * times['fast']:.2f} ms, maps read at {rate:.0f} GB/s)",
    )
    show(benchmark, steps["fast"], times["fast"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward", "backward without weight gradients"])
def test_separable_edges(benchmark, report, device, shape, direction):
    """Four edges with every separable candidate: fused, and put together from the stages and the sum."""
    n, size, c = shape
    edges, rules = range(4), range(RULES)
    twice = [(k, 1, e) for e in edges for k in (3, 5) for _ in rules]
    sizes, dilations, owners = (list(column) for column in zip(*twice, *((k, 2, e) for k, _, e in twice), strict=True))
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    plan = SeparablePlan(Stage(tuple(sizes), tuple(dilations)), tuple(owners), 4, len(twice))
    weights = SeparableWeights(
        *(
            StageWeights(randn(own.taps * c) / 4, randn(len(own.kernels), c, c) / c**0.5)
            for own in (plan.first, plan.second)
        )
    )
    x, grads = randn(n, size, size, c), list(randn(4, n, size, size, c))
    mixing = torch.rand(len(sizes), generator=generator, dtype=torch.float64).to(device)
    backend, nothing = find(fastest(device)), [None] * 4
    if direction == "forward":
        given = (x, weights, plan, mixing, None, nothing)
        steps = {
            "fused": lambda: backend.edges_forward(*given),
            "parts": lambda: composition.forward(backend, *given),
        }
        pairs = zip(steps["fused"]().out, steps["parts"]().out, strict=True)
    else:
        _, z, moments = backend.edges_forward(x, weights, plan, mixing, None, nothing)
        saved = SavedEdges(x, z, moments, True)
        given = (grads, saved, weights, weights, plan, mixing, direction == "backward")
        steps = {
            "fused": lambda: backend.edges_backward(*given),
            "parts": lambda: composition.backward(backend, *given),
        }
        pairs = zip(steps["fused"](), steps["parts"](), strict=True)
    for ours, theirs in pairs:
        assert ours.numel() == theirs.numel()
        assert not theirs.numel() or relative(ours, theirs) < 1e-3
    times = interleaved(steps)
    report.add(
        f"separable_edges {direction} {shape}, {fastest(device)}",
        f"{times['parts'] / times['fused']:6.2f} times as fast as its parts ({1e3 * times['fused']:.2f} ms)",
    )
    show(benchmark, steps["fused"], times["fused"])
