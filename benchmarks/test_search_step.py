"""A step of a search at paper-like width: 5 cells, C = 16, batch 16, 32×32."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from bionas_fast import native
from bionas_fast.space import get_space
from bionas_fast.supernet.stacked import StackedSupernet
from measuring import SearchStep, interleaved, matmul_peak, peak_memory, printed, show, useful_operations

SETTINGS = {"channels": 16, "cells": 5}
SHAPE = {"batch": 16, "size": 32}
STEPS = ("forward", "weights", "architecture", "both")
TARGETS = {
    "architecture": "[target 12, at least 9]",
    "both": "[target 18, at least 12]",
}


def checked(fast: SearchStep, slow: SearchStep) -> None:
    """With the same weights and draws: output and gradients of alpha as close to float64's as those of the modules.

    Through so many layers rounding grows to some 1e-3 of a gradient, in either engine.
    """
    if isinstance(fast.net, StackedSupernet):
        fast.net.load_modular(slow.net)
    exact = copy.copy(slow)
    exact.net = exact.run = copy.deepcopy(slow.net).double()
    exact.x = slow.x.double()
    with torch.no_grad():
        outputs = [step.run(step.x).double() for step in (fast, slow, exact)]
    gradients = [alpha_gradient(step) for step in (fast, slow, exact)]
    for ours, theirs, expected in (outputs, gradients):
        assert (ours - expected).norm() < 2 * (theirs - expected).norm() + 1e-5 * expected.norm()


@pytest.fixture(scope="module")
def engines(request):
    """Both engines with the same weights, by device."""
    made = {}

    def get(device: str):
        if device not in made:
            made[device] = [SearchStep(e, device=device, **SHAPE, **SETTINGS) for e in ("stacked", "modular")]
            checked(*made[device])
        return made[device]

    return get


@pytest.mark.parametrize("half", STEPS)
def test_engines(benchmark, report, engines, device, half):
    fast, slow = engines(device)
    times = interleaved({"stacked": getattr(fast, half), "modular": getattr(slow, half)}, rounds=3)
    report.ratios(f"search step {device}: {half}", times, "modular", TARGETS.get(half, ""))
    show(benchmark, getattr(fast, half), times["stacked"])


def test_share_of_a_matrix_product(benchmark, report, engines, device):
    """Useful operations a second, next to those of a matrix product timed in the same turns."""
    fast, slow = engines(device)
    product, operations = matmul_peak(device)
    useful = 3 * useful_operations(slow.net, slow.x)
    times = interleaved({"stacked": fast.weights, "product": product})
    rate, peak = useful / times["stacked"] / 1e9, operations / times["product"] / 1e9
    report.add(
        f"search step {device}: useful share of a matrix product",
        f"{rate / peak:6.1%} ({rate:.0f} of {peak:.0f} GFLOP/s) [target 45 %, at least 32 %]",
    )
    show(benchmark, fast.weights, times["stacked"])


def another(step: SearchStep, net: torch.nn.Module | None = None, amp: torch.dtype | None = None) -> SearchStep:
    """The same step of a copy, which has draws of its own."""
    other = copy.copy(step)
    other.net = other.run = copy.deepcopy(step.net)
    if net is not None:
        other.net.load_modular(net)
    other.amp = amp
    return other


def alpha_gradient(step: SearchStep) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in step.architecture()]).double()


@pytest.fixture(scope="module")
def modules(engines):
    """The network of modules, its gradient of alpha in float64, and how far from it that under autocast is."""
    _, slow = engines("cpu")
    exact = another(slow)
    exact.net.double()
    exact.x = slow.x.double()
    expected = alpha_gradient(exact)
    return copy.deepcopy(slow.net), expected, (alpha_gradient(another(slow, amp=torch.bfloat16)) - expected).norm()


def narrow_times(half: str, isa: str) -> dict[str, float]:
    wide = SearchStep("stacked", device="cpu", **SHAPE, **SETTINGS)
    narrow = copy.copy(wide)
    narrow.amp = torch.bfloat16
    with native.use_isa(isa):
        return interleaved({"bfloat16": getattr(narrow, half), "float32": getattr(wide, half)}, rounds=7)


@pytest.mark.parametrize("isa", native.isas() or ("none",))
@pytest.mark.parametrize("half", ["weights", "architecture"])
def test_bfloat16(benchmark, report, engines, modules, half, isa):
    """Maps in bfloat16 beside float32, on every instruction set; as near to float64 as modules under autocast.

    Through so many layers either is a quarter of the gradient away. The steps are timed in a process without other
    networks, as those of a search are.
    """
    wide, _ = engines("cpu")
    net, expected, error = modules
    assert error < 0.4 * expected.norm()
    with native.use_isa(isa):
        assert (alpha_gradient(another(wide, net, amp=torch.bfloat16)) - expected).norm() < 1.2 * error
    program = f"import json, test_search_step as t; print(json.dumps(t.narrow_times({half!r}, {isa!r})))"
    times = benchmark.pedantic(lambda: json.loads(printed(program)), rounds=1)
    target = " [target 1.3]" if isa == "avx512_bf16" else " [target 1]"
    report.ratios(f"search step cpu: {half}, {isa}", times, "float32", target)


@pytest.mark.skipif("avx2" not in native.isas(), reason="no AVX2")
def test_avx2(benchmark, report, engines):
    fast, slow = engines("cpu")
    with native.use_isa("avx2"):
        checked(fast, slow)

    def weights_and_architecture():
        with native.use_isa("avx2"):
            fast.both()

    times = interleaved({"stacked with AVX2": weights_and_architecture, "modular": slow.both}, rounds=3)
    report.ratios("search step cpu: both", times, "modular", "[target 11, at least 8]")
    show(benchmark, weights_and_architecture, times["stacked with AVX2"])


def test_compiled(benchmark, report, engines, device, request):
    if not request.config.getoption("--with-compile"):
        pytest.skip("compiles for minutes: --with-compile")
    fast, _ = engines(device)
    compiled = SearchStep("modular", device=device, compiled=True, **SHAPE, **SETTINGS)
    checked(fast, compiled)
    times = interleaved({"stacked": fast.both, "modular compiled": compiled.both}, rounds=3)
    report.ratios(f"search step {device}: both", times, "modular compiled", "[target 12, at least 8]")
    show(benchmark, fast.both, times["stacked"])


def test_peak_memory(benchmark, report):
    """Of the weights' half in processes of their own, above what importing takes."""
    settings = SHAPE | SETTINGS
    engines = {"stacked": "stacked", "modular": "modular", "stacked in bfloat16": "stacked"}
    peaks = {}
    for name, engine in engines.items():
        amp = "torch.bfloat16" if "bfloat16" in name else "None"
        step = f"step = SearchStep({engine!r}, device='cpu', **{settings}); step.amp = {amp}; step.weights()"
        peaks[name] = peak_memory(step, "import torch")
    for name, target in (("stacked", "1/8, at most 1/5"), ("stacked in bfloat16", "0.12")):
        report.add(
            f"search step cpu: peak memory above import, {name}",
            f"{peaks[name] / peaks['modular']:6.3f} of modular ({peaks[name]:.0f} of {peaks['modular']:.0f} MiB) "
            f"[target {target}]",
        )
    benchmark.extra_info.update(peaks)
    benchmark.pedantic(lambda: None, rounds=1)


GROWTH = {
    "batch": [{"batch": n} for n in (8, 16, 32)],
    "cells": [{"cells": n} for n in (3, 6, 12)],
    "channels": [{"channels": n} for n in (16, 32, 64)],
    "candidates": [{"operations": n} for n in (1, 2, 4)],
}


@pytest.mark.parametrize("grows", GROWTH)
def test_growth(benchmark, report, device, grows):
    """How the cost of a step grows with the size of one thing: 1 where it is proportional to it."""
    base = {"batch": 16, "size": 16, "channels": 16, "cells": 3}
    variants, counts = {}, []
    for change in GROWTH[grows]:
        settings = base | change
        operations = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")[: settings.pop("operations", 4)]
        space = get_space("bionas").restricted((), operations)
        step = SearchStep("stacked", device=device, space=space, **settings)
        variants[str(*change.values())] = step.both
        counts.append(next(iter(change.values())))
    times = interleaved(variants)
    seconds = list(times.values())
    growth = [b / a / (n / m) for a, b, m, n in zip(seconds, seconds[1:], counts, counts[1:], strict=False)]
    text = ", ".join(f"{name}: {1e3 * taken:.0f} ms" for name, taken in times.items())
    report.add(f"growth with {grows} on {device}", f"{'  '.join(f'{g:.2f}' for g in growth)} of proportional ({text})")
    show(benchmark, variants[str(counts[0])], seconds[0])
