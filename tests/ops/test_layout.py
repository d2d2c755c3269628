"""Images side by side in the channels of a map: the same results as apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.ops.mixed_edges.backends.native import Fused
from bionas_fast.ops.mixed_edges.layout import Layout
from helpers.native import needs_native
from helpers.supernets import with_nodes
from helpers.tolerances import REORDERED_FLOAT32

#: Channels, images, and how many of these lie side by side in 16 channels.
CASES = [
    (1, 32, 16),
    (2, 8, 8),
    (3, 8, 4),
    (4, 8, 4),
    (4, 6, 2),
    (4, 5, 1),
    (5, 4, 2),
    (8, 6, 2),
    (9, 4, 1),
    (16, 4, 1),
]


@pytest.mark.parametrize(("channels", "count", "images"), [*CASES, (20, 4, 1)])
def test_layout_keeps_every_number(channels, count, images):
    x = torch.randn(count, 3, 2, channels)
    layout = Layout.of(x, 16, 16)
    assert layout.images == images
    packed = layout.pack(x)
    assert packed.shape == (count // images, 3, 2, 16 if channels <= 16 else 32)
    for n in range(count):
        first = n % images * layout.width
        assert torch.equal(packed[n // images, ..., first : first + channels], x[n])
        assert not packed[n // images, ..., first + channels : first + layout.width].any()
    assert torch.equal(layout.unpack(packed), x)
    assert torch.equal(layout.unpack(torch.stack([packed, 2 * packed])), torch.stack([x, 2 * x]))
    rows = torch.randn(5, channels)
    for i in range(images):
        assert torch.equal(layout.rows(rows, 7.0)[:, i * layout.width :][:, :channels], rows)
    assert (layout.rows(rows, 7.0) == 7).sum() == 5 * (layout.lanes - images * channels)
    assert Layout.of(x, 1, 1).pack(x) is x


@needs_native
@pytest.mark.parametrize(("channels", "count", "images"), [CASES[0], CASES[2], *CASES[4:6]])
def test_results_are_those_of_images_apart(channels, count, images, monkeypatch):
    """Outputs, all gradients, statistics, and the maps of a population: as near to float64 as images apart are."""
    exact = bf.build_supernet(with_nodes("bionas", 2), channels=channels, cells=3, in_channels=2, seed=3)
    nets = [copy.deepcopy(exact) for _ in range(2)]
    exact.double()
    x, y = torch.randn(count, 2, 8, 8), torch.arange(count) % 10
    found = []
    for net, most in ((exact, 1), (nets[0], 1), (nets[1], 16)):
        monkeypatch.setattr(Fused, "most_images", most)
        own = x.to(net.classifier.weight.dtype, copy=True).requires_grad_()
        results = []
        for training in (True, False):
            net.train(training).zero_grad()
            out = net(own)
            F.cross_entropy(out, y).backward()
            # Tensors that hold all of a kind: the gradient of a single filter may vanish but for rounding.
            results += [out, torch.cat([p.grad.flatten() for p in net.weight_parameters() if p.grad is not None])]
            results += [torch.cat([p.grad.flatten() for p in net.alpha_parameters()])]
        mixing = {kind: value.detach()[None] for kind, value in net.architecture.mixing().items()}
        results += [
            own.grad,
            net.population(own, mixing),
            torch.cat([b.flatten() for b in net.buffers() if b.is_floating_point()]),
        ]
        found.append([result.detach().double() for result in results])
    truth, apart, together = found
    assert not all(torch.equal(a, b) for a, b in zip(apart, together, strict=True)) or images == 1
    for ours, theirs, expected in zip(together, apart, truth, strict=True):
        errors = [((own - expected).norm() / expected.norm()).item() for own in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + REORDERED_FLOAT32
