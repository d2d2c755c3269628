"""The kernels of the batched supernet, op by op, against their references and a matrix product."""

from __future__ import annotations

import pytest
import torch

from bionas_fast.backends import explain
from bionas_fast.ops.mixed_edges.autograd import composition, kernels
from measuring import interleaved, matmul_peak, relative, show

RULES = 4
SHAPES = [(16, 32, 16), (16, 16, 32), (16, 8, 64)]  # batch, size, channels: the three widths of a search step


def fastest(device: str) -> str:
    chosen = explain("mixed_edges", device).backend
    if chosen == "reference":
        pytest.skip("no compiled kernels")
    return chosen


def stage(device: str, shape: tuple[int, int, int], edges: int = 1, stride: int = 1):
    """Arguments of a first stage: both separable and both dilated convolutions under every rule."""
    n, size, c = shape
    kernels = ([3] * RULES + [5] * RULES) * 2 * edges
    dilations = ([1] * 2 * RULES + [2] * 2 * RULES) * edges
    generator = torch.Generator().manual_seed(0)

    def randn(*sizes):
        return torch.randn(*sizes, generator=generator).to(device)

    k = len(kernels)
    weights = randn(sum(x * x for x in kernels) * c) / 4, randn(k, c, c) / c**0.5
    forward = (randn(n, size, size, c), *weights, kernels, dilations, stride, None, None)
    operations = sum(2.0 * n * (-(-size // stride)) ** 2 * c * (x * x + c) for x in kernels)
    affine = [randn(k, c) for _ in range(3)]
    return (
        forward,
        affine,
        [e for e in range(edges) for _ in range(16)],
        randn(edges, n, -(-size // stride), -(-size // stride), c),
        operations,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "backward", "backward without weight gradients"])
def test_separable_stage(benchmark, report, device, shape, stride, direction):
    fast, plain = composition(fastest(device)), composition("reference")
    arguments, affine, index, grad, operations = stage(device, shape, stride=stride)
    x, *weights, sizes, dilations, _, _, _ = arguments
    z = fast.stage_forward(*arguments)[0]
    assert relative(z, plain.stage_forward(*arguments)[0]) < 1e-4
    if direction == "forward":
        steps = {name: (lambda k=k: k.stage_forward(*arguments)) for name, k in (("fast", fast), ("reference", plain))}
    else:
        wanted = direction == "backward"
        operations *= 1 + wanted
        given = (
            [grad], index, z, *affine, x, *weights, *weights, sizes, dilations, stride, None, None, wanted
        )  # fmt: skip
        for ours, theirs in zip(fast.stage_backward(*given), plain.stage_backward(*given), strict=True):
            assert ours.numel() == theirs.numel()
            assert not theirs.numel() or relative(ours, theirs) < 1e-4
        steps = {name: (lambda k=k: k.stage_backward(*given)) for name, k in (("fast", fast), ("reference", plain))}
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
    fast, plain = composition(fastest(device)), composition("reference")
    n, size, c = shape
    maps = [torch.randn(64, n, size, size, c, device=device)]
    index, edges = list(range(64)), [e for e in range(4) for _ in range(16)]
    if direction == "forward":
        given = (maps, index, edges, torch.randn(64, c, device=device), torch.randn(4, c, device=device), [])
    else:
        given = (maps, index, edges, list(torch.randn(4, n, size, size, c, device=device)))
    name = f"sum_{direction}"
    for ours, theirs in zip(getattr(fast, name)(*given), getattr(plain, name)(*given), strict=True):
        assert relative(ours, theirs) < 1e-4
    steps = {label: (lambda k=k: getattr(k, name)(*given)) for label, k in (("fast", fast), ("reference", plain))}
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

    weights = []
    for own in (sizes, sizes[: len(twice)]):
        weights += [randn(sum(k * k for k in own) * c) / 4, randn(len(own), c, c) / c**0.5]
    x, grads = randn(n, size, size, c), list(randn(4, n, size, size, c))
    mixing = torch.rand(len(sizes), generator=generator, dtype=torch.float64).to(device)
    geometry = (sizes, dilations, 1, owners)
    fused, parts = kernels(fastest(device)), composition(fastest(device))

    def forward(run):
        return run(x, weights, *geometry, 4, mixing, None, None, [])

    _, z, mean, var = forward(fused.edges_forward)

    def backward(run):
        wanted = direction == "backward"
        return run(grads, z, mean, var, True, x, weights, weights, *geometry, mixing, wanted)

    if direction == "forward":
        steps = {
            name: (lambda k=k: forward(k)) for name, k in (("fused", fused.edges_forward), ("parts", parts.forward))
        }
        pairs = zip(steps["fused"]()[0], steps["parts"]()[0], strict=True)
    else:
        runs = (("fused", fused.edges_backward), ("parts", parts.backward))
        steps = {name: (lambda k=k: backward(k)) for name, k in runs}
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
