"""A step of the stacked supernet with few channels: images side by side in the lanes of vectors, and one at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.ops.mixed_edges.backends.native import Fused
from bionas_fast.searching.frozen import frozen
from measuring import interleaved, relative, show

BATCH, SIZE, CELLS = 32, 28, 5


@pytest.mark.parametrize("half", ["weights", "alphas"])
@pytest.mark.parametrize("channels", [4, 8])
def test_half_a_step(channels, half, benchmark, report, monkeypatch):
    torch.manual_seed(0)
    net = bf.build_supernet(channels=channels, cells=CELLS, in_channels=1)
    x, y = torch.randn(BATCH, 1, SIZE, SIZE), torch.arange(BATCH) % 10
    wanted, other = list(net.weight_parameters()), list(net.alpha_parameters())
    if half == "alphas":
        wanted, other = other, wanted

    def step(most_images):
        monkeypatch.setattr(Fused, "most_images", most_images)
        with frozen(other):
            return torch.autograd.grad(F.cross_entropy(net(x), y), wanted, allow_unused=True)

    def flat(grads):
        return torch.cat([grad.flatten() for grad in grads if grad is not None]).double()

    with bf.true_gradients(net):  # random feedback would be drawn anew
        one, many = flat(step(1)), flat(step(16))
    exact = copy.deepcopy(net).double()
    chosen = exact.weight_parameters() if half == "weights" else exact.alpha_parameters()
    with bf.true_gradients(exact):
        expected = flat(torch.autograd.grad(F.cross_entropy(exact(x.double()), y), list(chosen), allow_unused=True))
    # Through so many layers rounding grows to some 1e-3 of a gradient.
    assert relative(many, expected) < 2 * relative(one, expected) < 0.01
    times = interleaved({"side by side": lambda: step(16), "one at a time": lambda: step(1)})
    what = f"{half}, C={channels}, batch {BATCH} of {SIZE}×{SIZE}"
    report.ratios(what, times, "one at a time", "(enough: 1.6 for C=4, 1.3 for C=8)")
    show(benchmark, lambda: step(16), times["side by side"])
