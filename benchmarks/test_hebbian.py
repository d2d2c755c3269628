"""Hebbian updates of the three layers of SoftHebb, next to the formulations over unfolded patches and over samples."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.backends import explain
from bionas_fast.functional import hebbian_update
from measuring import interleaved, matmul_peak, peak_memory, relative, show

BATCH = 10


class Layer(NamedTuple):
    """Geometry and temperature of a layer (Journé et al. 2023, CIFAR-10)."""

    filters: int
    channels: int
    kernel: int
    size: int
    temperature: float

    @property
    def name(self) -> str:
        return f"{self.filters} filters {self.kernel}×{self.kernel} on {self.channels}×{self.size}×{self.size}"

    @property
    def operations(self) -> float:
        """Multiplications and additions of the outer product."""
        return 2.0 * BATCH * self.size**2 * self.filters * self.channels * self.kernel**2


LAYERS = [Layer(96, 3, 5, 32, 1.0), Layer(384, 96, 3, 16, 0.65), Layer(1536, 384, 3, 8, 0.25)]
IDS = ["layer 1", "layer 2", "layer 3"]

#: ‖W_k‖ at the start and once learned. At the start many probabilities are subnormal numbers in float32.
NORMS = {"at the start": 25.0, "learned": 1.0}


def inputs(layer: Layer, norm: float, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x, padded as the published network does, W and u."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, layer.channels, layer.size, layer.size, generator=generator)
    weight = torch.randn(layer.filters, layer.channels, layer.kernel, layer.kernel, generator=generator)
    weight *= norm / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x = F.pad(x.to(device), [layer.kernel // 2] * 4, mode="reflect")
    return x, weight.to(device), F.conv2d(x, weight.to(device))


def ours(weight: Tensor, x: Tensor, u: Tensor, temperature: float, backend: str | None = None) -> Tensor:
    return hebbian_update(
        weight, x, u, rule="softhebb", rate=1e-3, temperature=temperature, normalisation="max", backend=backend
    )


def unfolded(weight: Tensor, x: Tensor, u: Tensor, temperature: float) -> Tensor:
    """The same update as one matrix product with all patches."""
    patches = F.unfold(x, weight.shape[2:]).transpose(1, 2).flatten(0, 1)
    out = u.movedim(1, -1).flatten(0, 2)
    soft = torch.softmax(temperature * out, dim=1)
    winner = F.one_hot(out.argmax(dim=1), out.shape[1])
    y = soft * (2 * winner - 1)
    rows = weight.flatten(1)
    delta = (y.T @ patches - (y * out).sum(dim=0)[:, None] * rows) / len(out)
    delta = delta / (delta.abs().max() + 1e-30)
    rows += 1e-3 * delta
    return delta.view_as(weight)


def sample_by_sample(weight: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """Sanger's rule as it is written, one Δ for each position; a piece of the positions at a time."""
    patches = F.unfold(x, weight.shape[2:]).transpose(1, 2).flatten(0, 1)
    out, rows = u.movedim(1, -1).flatten(0, 2), weight.flatten(1)
    delta = torch.zeros_like(rows)
    piece = max(1, 2**25 // rows.numel())
    for part, y in zip(patches.split(piece), out.split(piece), strict=True):
        rest = part[:, None] - (y[:, :, None] * rows).cumsum(dim=1)
        delta += (y[:, :, None] * rest).sum(dim=0)
    delta /= len(out)
    rows += 1e-3 * delta
    return delta.view_as(weight)


def skip_without_kernels(device: str) -> None:
    if explain("hebbian_update", device).backend == "reference":
        pytest.skip("no compiled kernels")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layer", LAYERS, ids=IDS)
def test_softhebb(benchmark, report, device, layer, norm):
    skip_without_kernels(device)
    x, weight, u = inputs(layer, NORMS[norm], device)
    t = layer.temperature

    def steps(weight):
        own, plain, rows = weight.clone(), weight.clone(), weight.clone()
        return {
            "ours": lambda: ours(own, x, u, t),
            "one weight gradient in PyTorch": lambda: ours(plain, x, u, t, "reference"),
            "unfolded": lambda: unfolded(rows, x, u, t),
        }

    expected = ours(weight.double(), x.double(), u.double(), t, "reference")
    for step in steps(weight).values():
        assert relative(step(), expected) < 1e-4
    product, product_operations = matmul_peak(device)
    timed = steps(weight)
    times = interleaved({**timed, "product": product}, rounds=9 if NORMS[norm] == 1 else 3)
    share = layer.operations / times["ours"] / (product_operations / times["product"])
    what = f"softhebb {norm}, {layer.name}"
    report.add(what, f"{1e3 * times['ours']:.1f} ms, {share:.0%} of a matrix product")
    targets = {"one weight gradient in PyTorch": 1.5 if layer is LAYERS[0] else 1.0, "unfolded": 3.0}
    for name, target in targets.items():
        ratio = times[name] / times["ours"]
        report.add(f"  next to {name}", f"{ratio:6.2f} times as fast ({1e3 * times[name]:.1f} ms) [target {target:g}]")
    show(benchmark, timed["ours"], times["ours"])


@pytest.mark.parametrize("layer", LAYERS, ids=IDS)
def test_memory(report, layer):
    skip_without_kernels("cpu")
    # A step before, for what a first call sets up is not the update's.
    setup = f"""
from test_hebbian import Layer, inputs, ours, unfolded
from measuring import forget_highest
layer = {layer!r}
def step(update):
    update(weight, x, u, layer.temperature)
x, weight, u = inputs(layer, 1.0)
step({{name}})
native.release_memory()
forget_highest()
"""
    peaks = {name: peak_memory(f"step({name})", setup.format(name=name)) for name in ("ours", "unfolded")}
    ratio = peaks["ours"] / max(peaks["unfolded"], 0.1)
    report.add(
        f"softhebb, peak memory, {layer.name}",
        f"{peaks['ours']:.1f} MiB, {ratio:.2f} of the {peaks['unfolded']:.1f} MiB of unfolded [target 0.25]",
    )


@pytest.mark.parametrize("layer", LAYERS[:2], ids=IDS[:2])
def test_hpca(benchmark, report, device, layer):
    skip_without_kernels(device)
    x, weight, u = inputs(layer, 1.0, device)

    def step(weight, backend=None):
        return hebbian_update(weight, x, u, rule="hpca", rate=1e-3, backend=backend)

    expected = hebbian_update(weight.double(), x.double(), u.double(), rule="hpca", rate=1e-3, backend="reference")
    own, plain, rows = weight.clone(), weight.clone(), weight.clone()
    assert relative(sample_by_sample(rows, x, u), expected) < 1e-4
    for backend, moved in ((None, own), ("reference", plain)):
        assert relative(step(moved, backend), expected) < 1e-4
    steps = {"ours": lambda: step(own), "one weight gradient in PyTorch": lambda: step(plain, "reference")}
    times = interleaved(steps, rounds=9)
    times |= interleaved({"sample by sample": lambda: sample_by_sample(rows, x, u)}, rounds=1)
    report.add(f"hpca, {layer.name}", f"{1e3 * times['ours']:.1f} ms")
    for name, target in (("one weight gradient in PyTorch", 1), ("sample by sample", 10)):
        ratio = times[name] / times["ours"]
        report.add(f"  next to {name}", f"{ratio:6.2f} times as fast ({1e3 * times[name]:.1f} ms) [target {target:g}]")
    show(benchmark, steps["ours"], times["ours"])
