"""The compiled Hebbian kernels against the reference in float64, under every instruction set of the machine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import native
from bionas_fast.functional import hebbian_update
from bionas_fast.kernels.hebbian import reference
from bionas_fast.ops.hebbian import NORMALISATIONS, RULES

ACTIVITIES = {"linear": "plain", "normalised": "hebb", "hard": "hard_wta", "soft": "soft_wta", "competing": "softhebb"}


@pytest.fixture(autouse=True)
def _library():
    if not native.load():
        pytest.skip(native.status().reason)


def operators():
    return torch.ops.bionas_fast_native


def assert_near(actual, expected, tolerance=1e-5, term=None):
    """The largest error is at most ``tolerance`` times the largest entry, also of a ``term`` that is in the sum."""
    assert actual.shape == expected.shape
    if expected.numel():
        largest = max(values.abs().max() for values in (expected, term) if values is not None)
        assert (actual - expected).abs().max() <= tolerance * largest.clamp_min(1e-30)


#: Below, at and above the lengths of a vector and of a block; layers of one channel and of one position.
sizes = {
    "n": st.integers(0, 3),
    "groups": st.integers(1, 3),
    "each": st.sampled_from([1, 2, 3, 16, 67]),
    "p": st.sampled_from([0, 1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 100, 150]),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.parametrize("activity", ACTIVITIES)
@given(
    **sizes,
    decay=st.sampled_from(["none", "square", "activity", "output"]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 30.0, -2.0]),
    ties=st.booleans(),
    own=st.booleans(),
    divided=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_activities_are_those_of_the_reference(
    activity, n, groups, each, p, seed, decay, temperature, ties, own, divided
):
    generator = torch.Generator().manual_seed(seed)
    u = 3 * torch.randn(n, groups * each, p, generator=generator)
    u = u.round() if ties else u
    external = torch.randn(u.shape, generator=generator) if own and activity == "linear" else None
    norm = torch.rand(n, groups, p, generator=generator) + 0.1 if divided else None
    expected = reference.activity(u.double(), ACTIVITIES[activity], temperature, groups)
    if external is not None:
        expected = external.double()
    if norm is not None:
        expected = expected / norm.double().repeat_interleave(each, dim=1)
    factor = {"square": expected, "output": u.double()}.get(decay, torch.ones(()))
    for name in native.isas():
        with native.use_isa(name):
            y, total = operators().hebbian_activity(u, external, norm, activity, decay, temperature, groups)
        if activity != "linear" or divided:
            assert_near(y, expected)
        else:
            assert y.numel() == 0
        if decay == "none":
            assert total.numel() == 0
        else:
            assert total.dtype == torch.float64
            terms = (expected * factor).transpose(0, 1).flatten(1)
            # Rounded twice, an argument of exp that float32 can hold the result of, at most 88, is off by 1e-5.
            # A power of e below 2^-100 is 0.
            lost = 1e-28 * (1 + factor.abs().sum())
            assert ((total - terms.sum(1)).abs() <= 2e-5 * terms.abs().sum(1) + lost).all()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@given(
    groups=st.integers(1, 3),
    each=st.integers(1, 5),
    d=st.sampled_from([0, 1, 3, 4, 15, 16, 17, 75, 100]),
    decays=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_moves_are_those_of_the_reference(normalisation, groups, each, d, decays, seed):
    generator = torch.Generator().manual_seed(seed)
    k = groups * each

    def coarse(*size):  # so few digits that outer - total · weight is exact, however little it leaves
        return torch.randn(*size, generator=generator).mul(64).round().div(64)

    weight, outer = coarse(2, k, d)
    total = coarse(k).double() if decays else torch.empty(0, dtype=torch.float64)
    rate = torch.rand(k, generator=generator)
    delta = (outer - total[:, None] * weight if decays else outer.double()) / 7
    if d:
        delta = reference.scaled(delta, normalisation, groups)
    moved = reference.normalise(weight + rate[:, None] * delta, normalisation)
    for name in native.isas():
        own, made = weight.clone(), outer.clone()
        with native.use_isa(name):
            operators().hebbian_move(own, made, total, rate, 7.0, normalisation, groups)
        assert_near(made, delta)
        assert_near(own, moved, term=weight)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("own", [False, True], ids=["", "own activity"])
@pytest.mark.parametrize("size", [3, 9])  # fewer positions than a vector holds, and more
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_updates_are_those_of_the_reference(isa, rule, normalisation, size, own, layout):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, size, size), torch.randn(6, 2, 3, 3).to(memory_format=layout)
    u = F.conv2d(x, weight, None, 1, 1, 1, 2).to(memory_format=layout)
    y = torch.randn_like(u) if own else None
    settings = {"rule": rule, "normalisation": normalisation, "padding": 1, "groups": 2, "temperature": 0.5}
    settings["rate"] = torch.rand(6)
    moved, expected = weight.clone(), weight.double()
    delta = hebbian_update(moved, x, u, y, **settings, backend="native")
    doubles = [None if t is None else t.double() for t in (x, u, y)]
    expected_delta = hebbian_update(expected, *doubles, **settings, backend="reference")
    assert delta.is_contiguous()
    assert_near(delta, expected_delta)
    assert_near(moved, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("activity", ACTIVITIES)
def test_numbers_that_are_not_finite_stay_so(isa, activity, value):
    u = torch.randn(2, 5, 70, generator=torch.Generator().manual_seed(0))
    u[0, 3, [2, 30, 69]] = value
    u[0, 4, 30] = value
    y, total = operators().hebbian_activity(u, None, torch.ones(2, 1, 70), activity, "activity", 1.0, 1)
    expected = reference.activity(u, ACTIVITIES[activity], 1.0, 1)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.equal(total.isfinite(), expected.sum((0, 2)).isfinite())


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_nan_reaches_the_weights(isa, normalisation):
    weight, delta = torch.ones(2, 37), torch.ones(2, 37)
    delta[0, 5] = torch.nan
    operators().hebbian_move(weight, delta, torch.empty(0).double(), torch.ones(2), 1.0, normalisation, 1)
    assert weight[0, 5].isnan()


def test_exponential_is_accurate_and_never_subnormal(isa):
    z = -torch.linspace(0, 120, 20001)
    u = torch.stack([torch.zeros_like(z), z]).unsqueeze(0)
    y = operators().hebbian_activity(u, None, None, "soft", "none", 1.0, 1)[0][0, 1]
    expected = torch.softmax(u.double(), 1)[0, 1]
    kept = z >= -69.3
    assert ((y - expected).abs() / expected)[kept].max() < 4 * 2**-24
    assert (y[~kept] == 0).all()


def test_results_repeat_and_hardly_depend_on_threads(isa):
    u = torch.randn(5, 70, 130, generator=torch.Generator().manual_seed(0))
    weight, outer = torch.randn(2, 70, 2000, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            y, total = operators().hebbian_activity(u, None, None, "competing", "output", 1.0, 1)
            moved, delta = weight.clone(), outer.clone()
            operators().hebbian_move(moved, delta, total, torch.ones(70), 650.0, "max", 1)
            results.append((y, total, delta, moved))
    finally:
        torch.set_num_threads(before)
    for result in results:
        assert torch.equal(result[0], results[0][0])
        for actual, expected in zip(result[1:], results[0][1:], strict=True):
            assert_near(actual, expected, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(2, 4, 3, dtype=torch.float64)}, "u: expected Float"),
        ({"u": torch.ones(2, 4)}, r"u: expected \[N, K, P\]"),
        ({"u": torch.ones(2, 3, 4).transpose(1, 2)}, "u: expected a contiguous"),
        ({"groups": 3}, "K divided by groups"),
        ({"external": torch.ones(2, 4, 2)}, "external: expected the shape of u"),
        ({"norm": torch.ones(2, 4, 3)}, r"norm: expected \[N, groups, P\]"),
        ({"activity": "softer"}, "activity: got softer"),
        ({"decay": "lower"}, "decay: got lower"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_what_it_cannot_do(change, message):
    arguments = {"u": torch.ones(2, 4, 3), "external": None, "norm": None, "activity": "soft", "decay": "none"}
    with pytest.raises(RuntimeError, match=message):
        operators().hebbian_activity(**(arguments | {"temperature": 1.0, "groups": 2} | change))


@pytest.mark.parametrize("activity", ACTIVITIES)
@pytest.mark.parametrize("decay", ["none", "output"])
def test_opcheck_activity(activity, decay):
    arguments = (torch.randn(2, 4, 20), None, None, activity, decay, 1.0, 2)
    torch.library.opcheck(operators().hebbian_activity.default, arguments)


def test_opcheck_move():
    weight, delta = torch.randn(2, 4, 3, 3, 3)
    arguments = (weight, delta, torch.rand(4).double(), torch.rand(4), 5.0, "max", 2)
    torch.library.opcheck(operators().hebbian_move.default, arguments)


def exact_weight_gradient(gradient, x, padding):
    """The weight gradient of PyTorch, in float64."""
    weight = torch.zeros(gradient.shape[1], x.shape[1], 3, 3, dtype=torch.float64)
    geometry = [1, 1], list(padding), [1, 1], False, [0, 0], 1
    tensors = gradient.double(), x.double(), weight, None
    return torch.ops.aten.convolution_backward(*tensors, *geometry, [False, True, False])[1]


@given(
    n=st.integers(1, 3),
    channels=st.tuples(*[st.sampled_from([1, 3, 16, 31, 32, 33, 70])] * 2),
    size=st.tuples(*[st.integers(1, 23)] * 2),
    padding=st.tuples(*[st.integers(0, 2)] * 2),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_weight_gradient(n, channels, size, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    size = [max(length, 2 * zeros - 1) for length, zeros in zip(size, padding, strict=True)]
    x = torch.randn(n, channels[0], *(s + 2 - 2 * p for s, p in zip(size, padding, strict=True)), generator=generator)
    gradient = torch.randn(n, channels[1], *size, generator=generator)
    expected = exact_weight_gradient(gradient, x, padding)
    terms = exact_weight_gradient(gradient.abs(), x.abs(), padding)
    for isa in native.isas():
        with native.use_isa(isa):
            assert_near(operators().weight_gradient(gradient, x, padding), expected, 1e-5, terms)


def test_weight_gradient_of_many_tiles(isa):
    """They are taken a chunk at a time, and added up."""
    gradient, x = torch.randn(3, 40, 45, 90), torch.randn(3, 33, 47, 92)
    assert_near(operators().weight_gradient(gradient, x, [0, 0]), exact_weight_gradient(gradient, x, [0, 0]))


def test_weight_gradient_of_nothing():
    for n, k, c, h, w in [(0, 3, 4, 5, 5), (2, 0, 4, 5, 5), (2, 3, 0, 5, 5), (2, 3, 4, 0, 5), (2, 3, 4, 5, 0)]:
        made = operators().weight_gradient(torch.ones(n, k, h, w), torch.ones(n, c, h + 2, w + 2), [0, 0])
        assert made.shape == (k, c, 3, 3) and not made.any()


def test_weight_gradient_does_not_depend_on_threads():
    gradient, x = torch.randn(2, 300, 9, 9), torch.randn(2, 70, 9, 9)
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made.append(operators().weight_gradient(gradient, x, [1, 1]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, made[0]) for other in made[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": torch.ones(2, 4, 5, 5).double()}, "gradient: expected Float"),
        ({"gradient": torch.ones(2, 4, 5, 4)}, "gradient: expected that of a 3x3 kernel"),
        ({"x": torch.ones(1, 3, 7, 7)}, r"x: expected \[N, C, H, W\]"),
        ({"x": torch.ones(2, 3, 7)}, r"x: expected \[N, C, H, W\]"),
        ({"x": torch.ones(2, 7, 7, 3).permute(0, 3, 1, 2)}, "x: expected a contiguous"),
        ({"padding": [0]}, "padding: expected two numbers"),
        ({"padding": [0, -1]}, "padding: expected 0 to"),
    ],
    ids=str,
)
def test_weight_gradient_refuses_what_it_cannot_do(change, message):
    arguments = {"gradient": torch.ones(2, 4, 5, 5), "x": torch.ones(2, 3, 7, 7), "padding": [0, 0]}
    with pytest.raises(RuntimeError, match=message):
        operators().weight_gradient(**(arguments | change))


def test_opcheck_weight_gradient():
    arguments = (torch.randn(2, 4, 5, 6), torch.randn(2, 3, 5, 6), [1, 1])
    torch.library.opcheck(operators().weight_gradient.default, arguments)


@pytest.mark.parametrize(
    ("geometry", "filtered"),
    [
        ({}, True),
        ({"padding": 1}, True),
        ({"stride": 2}, False),
        ({"dilation": 2}, False),
        ({"groups": 2}, False),
    ],
    ids=str,
)
def test_updates_of_large_layers_are_those_of_the_reference(monkeypatch, geometry, filtered):
    """So large that the outer product is taken by minimal filtering where the geometry allows it."""
    taken = []
    outer_product = reference.outer_product
    monkeypatch.setattr(reference, "outer_product", lambda *arguments: taken.append(1) or outer_product(*arguments))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 12, 11, generator=generator)
    weight = torch.randn(96, 64 // geometry.get("groups", 1), 3, 3, generator=generator) / 24
    u = F.conv2d(x, weight, **geometry)
    for rule in RULES:
        moved, expected = weight.clone(), weight.double()
        delta = hebbian_update(moved, x, u, rule=rule, backend="native", **geometry)
        assert bool(taken) != filtered
        taken.clear()
        expected_delta = hebbian_update(expected, x.double(), u.double(), rule=rule, backend="reference", **geometry)
        taken.clear()
        assert_near(delta, expected_delta.float())
        assert_near(moved, expected.float())


def test_layers_learn_the_same():
    torch.manual_seed(0)
    layers = [bf.nn.HebbianConv2d(3, 8, 3, padding=1, norm=25.0, adaptive=True, rate=0.1) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for x in torch.randn(5, 4, 3, 9, 9):
        for layer, backend in zip(layers, ("native", "reference"), strict=True):
            with bf.use_backend(backend):
                layer(x)
    assert_near(layers[0].plasticity, layers[1].plasticity)
