"""Hebbian updates against their formulas written out over patches, and the layers' promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.functional import adaptive_rate, hebbian_activity, hebbian_update
from bionas_fast.nn import hebbian
from bionas_fast.nn.hebbian import name_layers
from bionas_fast.ops.hebbian import RULES
from helpers.native import skip_without
from helpers.tolerances import assert_close

BACKENDS = ["reference", "native"]


def patches(x, kernel, stride, padding, dilation):
    """[P, D], rows in the order of N, H, W and columns in that of a weight."""
    return F.unfold(x, kernel, dilation, padding, stride).transpose(1, 2).flatten(0, 1)


def by_channel(maps):
    """[P, K]."""
    return maps.movedim(1, -1).flatten(0, 2)


def written_out(weight, rows, u, rule, temperature):
    """Δ of one group, position by position: rows [P, D], u [P, K]."""
    delta = torch.zeros_like(weight)
    threshold = [float((u[:, k] ** 2).mean()) for k in range(u.shape[1])]
    for x, out in zip(rows, u, strict=True):
        soft = torch.exp(temperature * out) / torch.exp(temperature * out).sum()
        winner = F.one_hot(out.argmax(), len(out)).to(out.dtype)
        competing = {"hard_wta": winner, "soft_wta": soft, "softhebb": soft * (2 * winner - 1)}
        y = out.clamp(min=0) if rule == "hpca_relu" else competing.get(rule, out)
        for k in range(len(out)):
            if rule in ("plain", "hebb"):
                scale = (x.norm() * out.norm()).clamp_min(1e-24) if rule == "hebb" else 1.0
                delta[k] += y[k] * x / scale
            elif rule == "bcm":
                delta[k] += out[k] * (out[k] - threshold[k]) * x
            elif rule in ("hpca", "hpca_relu"):
                delta[k] += y[k] * (x - sum(y[j] * weight[j] for j in range(k + 1)))
            else:
                taken = {"oja": y[k] ** 2, "softhebb": y[k] * out[k]}.get(rule, y[k])
                delta[k] += y[k] * x - taken * weight[k]
    return delta / len(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    n=st.integers(1, 2),
    groups=st.integers(1, 2),
    each=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_updates_are_their_formulas(backend, rule, n, groups, each, kernel, stride, padding, dilation, seed):
    skip_without(backend)
    # The compiled kernels know float32 only.
    dtype, tolerance = (torch.float64, 1e-10) if backend == "reference" else (torch.float32, 1e-5)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2 * groups, 5, 6, generator=generator, dtype=dtype)
    weight = torch.randn(each * groups, 2, *kernel, generator=generator, dtype=dtype)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    u = F.conv2d(x, weight, None, **geometry)
    chunks = weight.double().chunk(groups), x.double().chunk(groups, 1), u.double().chunk(groups, 1)
    expected = torch.cat([
        written_out(
            own.flatten(1), patches(part, kernel, stride, padding, dilation), by_channel(out), rule, 1.5
        ).view_as(own)
        for own, part, out in zip(*chunks, strict=True)
    ])  # fmt: skip
    rate = torch.rand(len(weight), generator=generator, dtype=dtype)
    moved = weight.clone()
    delta = hebbian_update(moved, x, u, rule=rule, rate=rate, temperature=1.5, backend=backend, **geometry)
    for actual, wanted in ((delta, expected), (moved, weight + rate.view(-1, 1, 1, 1) * expected)):
        assert (actual - wanted).abs().max() <= tolerance * (1 + wanted.abs().max())


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_layer_is_a_convolution_of_one_position(rule):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    u = x @ weight.T
    linear = hebbian_update(weight.clone(), x, u, rule=rule)
    image = hebbian_update(
        weight[:, :, None, None].clone(),
        x.flatten(0, 1)[:, :, None, None],
        u.flatten(0, 1)[:, :, None, None],
        rule=rule,
    )
    assert_close(linear, image[:, :, 0, 0])


@pytest.mark.parametrize("dims", [1, 2])
def test_fewer_dimensions_are_three_of_size_one(dims):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, *[5] * dims), torch.randn(4, 3, *[3] * dims)
    u = (F.conv1d, F.conv2d)[dims - 1](x, weight, None, 2, 1)
    shaped = [t.view(*t.shape[:2], *[1] * (3 - dims), *t.shape[2:]) for t in (weight.clone(), x, u)]
    pads = [0] * (3 - dims) + [1] * dims
    expected = hebbian_update(*shaped, rule="softhebb", stride=2, padding=pads)
    delta = hebbian_update(weight, x, u, rule="softhebb", stride=2, padding=1)
    assert_close(delta, expected.view_as(weight))


@pytest.mark.parametrize("rule", RULES)
def test_the_step_depends_on_neither_batch_size_nor_resolution(rule):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(5, 3, 2, 2, dtype=torch.float64)

    def step(x):
        return hebbian_update(weight.clone(), x, F.conv2d(x, weight, stride=2), rule=rule, stride=2)

    expected = step(x)
    assert_close(step(x.repeat(3, 1, 1, 1)), expected)
    assert_close(step(x.repeat(1, 1, 2, 2)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_an_empty_batch_moves_nothing(rule, backend):
    skip_without(backend)
    for weight, x in ((torch.randn(5, 3, 2, 2), torch.randn(0, 3, 4, 4)), (torch.randn(5, 3), torch.randn(0, 3))):
        u = F.conv2d(x, weight) if weight.dim() > 2 else x @ weight.T
        moved = weight.clone()
        assert not hebbian_update(moved, x, u, rule=rule, backend=backend).any()
        assert torch.equal(moved, weight)


@pytest.mark.parametrize(
    ("normalisation", "holds"),
    [
        ("clamp", lambda w, d: w.abs().max() <= 1),
        ("unit", lambda w, d: torch.allclose(w.flatten(1).norm(dim=1), torch.ones(len(w)))),
        ("max", lambda w, d: torch.allclose(d.abs().amax(), torch.ones(()))),
    ],
)
def test_normalisations(normalisation, holds):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 5), 3 * torch.randn(4, 3, 3, 3)
    u = F.conv2d(x, weight)
    assert not holds(weight, hebbian_update(weight.clone(), x, u))
    delta = hebbian_update(weight, x, u, normalisation=normalisation)
    assert holds(weight, delta)


def test_soft_competition_becomes_hard_as_the_temperature_grows():
    u = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(hebbian_activity(u, "soft_wta", temperature=1e6), hebbian_activity(u, "hard_wta"))


def test_oja_finds_the_principal_component():
    generator = torch.Generator().manual_seed(0)
    direction = F.normalize(torch.randn(8, generator=generator), dim=0)
    x = 3 * torch.randn(2000, 1, generator=generator) * direction + 0.3 * torch.randn(2000, 8, generator=generator)
    layer = bf.nn.HebbianLinear(8, 1, rule="oja", rate=0.05)
    for batch in x.split(20):
        layer(batch)
    found = F.normalize(layer.plasticity[0], dim=0)
    assert (found @ direction).abs() > 0.99
    assert layer.plasticity.norm() == pytest.approx(1, abs=0.05)


def test_hpca_finds_the_components_in_order():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    x = torch.randn(6000, 6, generator=generator) * torch.tensor([3.0, 2.0, 1.2, 0.3, 0.2, 0.1]) @ basis.T
    layer = bf.nn.HebbianLinear(6, 3, rule="hpca", rate=0.02, norm=0.5)
    for batch in x.repeat(3, 1).split(20):
        layer(batch)
    overlap = F.normalize(layer.plasticity, dim=1) @ basis[:, :3]
    assert (overlap.diagonal().abs() > 0.97).all()


class TestOperator:
    def arguments(self, rule, backend):
        x, weight = torch.randn(2, 4, 5, 6), torch.randn(6, 2, 3, 3)
        u = F.conv2d(x, weight, None, 2, 1, 1, 2)
        return weight, x, u, None, torch.tensor(0.1), rule, 1.0, "max", [2, 2], [1, 1], [1, 1], 2, backend

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("rule", ["softhebb", "hebb", "hpca"])
    def test_opcheck(self, rule, backend):
        skip_without(backend)
        torch.library.opcheck(torch.ops.bionas_fast.hebbian_update.default, self.arguments(rule, backend))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_compiles_into_one_graph(self, backend):
        skip_without(backend)
        x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)

        def step(weight):
            u = F.conv2d(x, weight)
            return u.sum() + hebbian_update(weight, x, u, rule="softhebb", backend=backend).sum()

        expected, own = weight.clone(), weight.clone()
        result = step(expected)
        assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(own), result)
        assert_close(own, expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rule": "hebbs"}, "unknown rule 'hebbs'; did you mean 'hebb'"),
            ({"normalisation": "l2"}, "unknown normalisation"),
            ({"x": torch.zeros(2, 4, 5, 5)}, r"x: expected \[N, 3, \*positions\], got shape \[2, 4, 5, 5\]"),
            ({"u": torch.zeros(2, 4, 3, 4)}, r"u: expected \[2, 4, 3, 3\], got \[2, 4, 3, 4\]"),
            ({"y": torch.zeros(2, 4, 3)}, "y: expected the shape of u"),
            ({"rate": torch.ones(3)}, r"rate: expected a number or \[4\]"),
            ({"groups": 3}, "groups: 3 does not divide the 4 channels of weight"),
            ({"stride": (1, 2, 3)}, "stride: expected one number or 2"),
            ({"backend": "triton"}, "cannot run on backend 'triton'"),
        ],
    )
    def test_bad_input(self, change, message):
        given = {"weight": torch.randn(4, 3, 3, 3), "x": torch.zeros(2, 3, 5, 5), "u": torch.zeros(2, 4, 3, 3)} | change
        before = given["weight"].clone()
        with pytest.raises(InputError, match=message):
            hebbian_update(**given)
        assert torch.equal(given["weight"], before)


LAYERS = [
    pytest.param(lambda **a: bf.nn.HebbianConv2d(3, 4, 3, padding=1, **a), (2, 3, 6, 6), id="conv"),
    pytest.param(lambda **a: bf.nn.HebbianLinear(5, 4, **a), (7, 5), id="linear"),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
class TestLayers:
    def test_learns_in_training_mode_only(self, make, shape):
        layer, x = make(), torch.randn(*shape)
        before = layer.plasticity.clone()
        layer.eval()
        first = layer(x)
        layer.train()
        with bf.nn.frozen_plasticity(nn.Sequential(layer)):
            assert torch.equal(layer(x), first)
        assert torch.equal(layer.plasticity, before)
        assert layer.steps == 0
        # The pass that learns answers with the weights before its step.
        assert torch.equal(layer(x), first)
        assert not torch.equal(layer.plasticity, before)
        assert layer.steps == 1

    def test_every_other_batch(self, make, shape):
        layer, x = make(every=2), torch.randn(*shape)
        before = layer.plasticity.clone()
        layer(x)
        assert torch.equal(layer.plasticity, before)
        layer(x)
        assert not torch.equal(layer.plasticity, before)

    def test_gradients_are_those_of_the_weights_used(self, make, shape):
        layer, x = make(mode="mixed", rule="hebb", rate=0.5, bias=True), torch.randn(*shape, requires_grad=True)
        layer(x)
        assert layer.plasticity.abs().max() > 0
        used = (layer.weight + layer.plastic_scale * layer.plasticity).detach().requires_grad_()
        plasticity = layer.plasticity.clone()
        out = layer(x)
        grad = torch.randn_like(out)
        out.backward(grad)
        if x.dim() == 4:
            expected = torch.autograd.grad(F.conv2d(x, used, layer.bias.detach(), padding=1), (x, used), grad)
        else:
            expected = torch.autograd.grad(F.linear(x, used, layer.bias.detach()), (x, used), grad)
        assert_close(x.grad, expected[0])
        assert_close(layer.weight.grad, expected[1])
        assert_close(layer.plastic_scale.grad, expected[1] * plasticity)
        assert layer.bias.grad is not None

    def test_hebbian_mode_has_no_weights_to_train(self, make, shape):
        layer, x = make(), torch.randn(*shape, requires_grad=True)
        assert list(layer.parameters()) == []
        layer(x).sum().backward()
        assert x.grad.abs().max() > 0

    def test_state_dict_continues(self, make, shape):
        layer, copy, x = make(), make(), torch.randn(*shape)
        layer(x)
        copy.load_state_dict(layer.state_dict())
        layer(x), copy(x)
        assert torch.equal(layer.plasticity, copy.plasticity)
        assert copy.steps == 2

    def test_adaptive_rates(self, make, shape):
        layer, x = make(adaptive=True, rate=0.1, norm=4.0, normalisation="max"), torch.randn(*shape)
        before = layer.plasticity.clone()
        assert_close(before.flatten(1).norm(dim=1), torch.full((4,), 4.0))
        layer(x)
        moved = before.clone()
        u = F.conv2d(x, before, padding=1) if x.dim() == 4 else F.linear(x, before)
        geometry = {"padding": 1} if x.dim() == 4 else {}
        hebbian_update(moved, x, u, rate=adaptive_rate(before, 0.1), normalisation="max", **geometry)
        assert_close(layer.plasticity, moved)

    def test_weights_that_are_not_finite_name_layer_and_step(self, make, shape):
        net = nn.Sequential(nn.Identity(), make(rule="plain", rate=1e30))
        name_layers(net)
        x = torch.randn(*shape)
        net(x)
        before = net[1].plasticity.clone()
        with pytest.raises(InputError, match=r"1 \(Hebbian.*\): the Hebbian update of step 2 .*not finite.*rate"):
            net(x)
        assert torch.equal(net[1].plasticity, before)

    def test_where_reading_waits_it_is_read_once_in_a_while(self, make, shape, monkeypatch):
        """As on a GPU: H stays what it was before the first update that is not finite, until that is read."""
        x, plain, layer = torch.randn(*shape), make(rule="plain", rate=0.1), make(rule="plain", rate=0.1)
        layer.load_state_dict(plain.state_dict())
        monkeypatch.setattr(hebbian, "_waits", lambda device: True)
        monkeypatch.setattr(hebbian, "READ_EVERY", 3)

        def learn(steps):
            for _ in range(steps):
                layer(x)

        learn(4)
        with monkeypatch.context() as patch:
            patch.setattr(hebbian, "_waits", lambda device: False)
            for _ in range(4):
                plain(x)
        before = layer.plasticity.clone()
        assert torch.equal(before, plain.plasticity)
        for read in (lambda: learn(1), layer.eval, lambda: hebbian.expect_finite(nn.Sequential(layer))):
            layer.rate = math.inf
            learn(1)
            assert torch.equal(layer.plasticity, before)
            layer.rate = 0.0  # an update that is finite, and not made
            if layer._unread < 2:
                learn(1)
            with pytest.raises(InputError, match=r"Hebbian.*: the Hebbian update of step \d+ .*not finite"):
                read()
            assert torch.equal(layer.plasticity, before)
        layer.eval()
        layer.expect_finite()

    def test_a_checkpoint_of_another_shape(self, make, shape):
        layer = make()
        state = layer.state_dict() | {"plasticity": torch.zeros(2, 2)}
        with pytest.raises(InputError, match=r"plasticity: the checkpoint holds shape \[2, 2\], this layer \[4,"):
            layer.load_state_dict(state)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rule": "soft"}, "unknown rule 'soft'"),
            ({"mode": "both"}, "unknown mode"),
            ({"normalisation": "l2"}, "unknown normalisation"),
            ({"rate": float("nan")}, "rate: expected a finite number"),
            ({"every": 0}, "every: expected at least 1"),
        ],
    )
    def test_bad_input(self, make, shape, change, message):
        with pytest.raises(InputError, match=message):
            make(**change)
        with pytest.raises(InputError, match="x: expected"):
            make()(torch.zeros(1, 2))


def test_groups_that_do_not_divide():
    with pytest.raises(InputError, match="groups: 2 does not divide in_channels=3"):
        bf.nn.HebbianConv2d(3, 4, 3, groups=2)


def test_triangle():
    u = torch.tensor([[1.0, 2.0, 6.0]])
    assert_close(bf.nn.Triangle(2)(u), torch.tensor([[0.0, 0.0, 9.0]]))
