"""Analysis of networks, against formulas, NumPy and SciPy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.analysis import (
    alpha_entropy,
    composition,
    measure_alignment,
    measure_gradients,
    measure_weights,
)
from helpers.genotypes import GENOTYPE


def network(rule):
    torch.manual_seed(0)
    return nn.Sequential(
        bf.nn.Conv2d(1, 4, 3, rule=rule, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        bf.nn.Linear(144, 20, rule=rule),
        nn.Tanh(),
        nn.Linear(20, 5),
    )


def batches(count=4, size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 1, 6, 6, generator=generator, dtype=dtype)
    return [(x, torch.randint(5, (size,), generator=generator)) for x in images]


@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "dfa"])
def test_gradients_by_numpy(rule):
    """Variance, noise scale and cosine from the gradients of autograd, in float64."""
    net = network(rule).double()
    if rule == "dfa":
        bf.nn.connect_direct_feedback(net, 5)
    data = batches(dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    found = {own.name: own for own in measure_gradients(net, data)}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert list(found) == ["0", "4", "6"]
    own, true = {name: [] for name in found}, {name: [] for name in found}
    for rows, plain in ((own, False), (true, True)):
        twin = copy.deepcopy(net).train()
        if plain:
            twin = bf.to_torch(twin).train()
        for x, y in data:
            twin.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            for name in found:
                rows[name].append(twin.get_submodule(name).weight.grad.numpy().ravel().copy())
    for name, layer in found.items():
        g, t = np.array(own[name]), np.array(true[name]).mean(0)
        mean = g.mean(0)
        assert layer.variance == pytest.approx(g.var(axis=0, ddof=1).mean(), rel=1e-9)
        assert layer.noise_scale == pytest.approx(np.trace(np.atleast_2d(np.cov(g.T))) / (mean @ mean), rel=1e-9)
        assert layer.cosine == pytest.approx(mean @ t / np.linalg.norm(mean) / np.linalg.norm(t), rel=1e-9)
        assert layer.rule == ("bp" if name == "6" else rule)
    if rule == "bp":
        assert all(layer.cosine == pytest.approx(1) for layer in found.values())
    else:
        assert found["0"].cosine < 0.99
        assert found["6"].cosine == pytest.approx(1)


def test_gradients_need_batches():
    with pytest.raises(InputError, match="expected at least 2"):
        measure_gradients(network("bp"), batches(1))


def test_weights_by_scipy():
    net = network("fa")
    layers = {own.name: own for own in measure_weights(net)}
    assert list(layers) == ["0", "4", "6"]
    rules = {own.name: own for own in measure_weights(net, by="rule")}
    together = torch.cat([net[0].weight.flatten(), net[4].weight.flatten()]).detach().double().numpy()
    for own, values in [(layers["6"], net[6].weight.detach().double().numpy().ravel()), (rules["fa"], together)]:
        assert own.count == len(values)
        assert own.sigma == pytest.approx(values.std(), rel=1e-6)
        assert own.kurtosis == pytest.approx(stats.kurtosis(values), rel=1e-5)
        density, edges = np.histogram(values, bins=64, density=True)
        np.testing.assert_allclose(own.edges.numpy(), edges, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(own.density.numpy(), density, rtol=0.05, atol=0.5 * density.max())
        assert float((own.density * own.edges.diff()).sum()) == pytest.approx(1)
    constant = nn.Linear(3, 3)
    nn.init.constant_(constant.weight, 0.5)
    assert math.isnan(measure_weights(constant)[0].kurtosis)


def test_alignment_by_its_formula():
    net = network("fa")
    (first, second) = measure_alignment(net)
    w, b = (t.detach().double().flatten() for t in (net[4].weight, net[4].feedback))
    assert second.angle == pytest.approx(math.degrees(math.acos(w @ b / w.norm() / b.norm())), abs=1e-3)
    assert second.norm_ratio == pytest.approx(float(b.norm() / w.norm()), rel=1e-5)
    assert (first.name, second.name) == ("0", "4")
    assert [own.angle for own in measure_alignment(network("bp"))] == pytest.approx([0, 0], abs=0.1)


def test_composition():
    rows = composition([GENOTYPE, GENOTYPE])
    edges = sum(len(cell.edges) for cell in GENOTYPE.cells.values())
    assert sum(row["count"] for row in rows) == 2 * edges
    for kind, cell in GENOTYPE.cells.items():
        for node in range(2, 2 + len(cell.nodes)):  # states 0 and 1 are the inputs
            assert sum(row["share"] for row in rows if (row["cell"], row["node"]) == (kind, node)) == pytest.approx(1)


def test_entropy_by_scipy():
    alphas = np.random.default_rng(0).normal(size=(3, 14, 8)).astype(np.float32)
    weights = np.exp(alphas.astype(np.float64))
    expected = stats.entropy(weights, axis=-1, base=2).mean(axis=-1)
    np.testing.assert_allclose(alpha_entropy(alphas), expected, rtol=1e-6)
    np.testing.assert_allclose(alpha_entropy(np.zeros((1, 2, 8))), 3)
    decided = np.zeros((1, 2, 8))
    decided[..., 0] = 1000
    np.testing.assert_allclose(alpha_entropy(decided), 0, atol=1e-12)
