"""Plastic layers as layers of torch.nn, and several winners of a competition."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from bionas_fast import InputError
from bionas_fast.functional import hebbian_update, raised_cosine
from bionas_fast.nn import HebbianConv2d, HebbianLinear
from helpers.tolerances import assert_close

LAYERS = {"conv": (HebbianConv2d, (3, 6, 3), (2, 3, 5, 5)), "linear": (HebbianLinear, (4, 6), (5, 4))}
layers = pytest.mark.parametrize(("kind", "sizes", "shape"), LAYERS.values(), ids=LAYERS)
modes = pytest.mark.parametrize("mode", ["hebbian", "mixed"])


@layers
@modes
@pytest.mark.parametrize("norm", [None, 5.0])
def test_reset_parameters_draws_what_the_constructor_draws(kind, sizes, shape, mode, norm):
    torch.manual_seed(1)
    fresh = kind(*sizes, mode=mode, norm=norm)
    torch.manual_seed(0)
    layer = kind(*sizes, mode=mode, norm=norm)
    layer(torch.randn(shape))
    assert int(layer.steps) == 1
    torch.manual_seed(1)
    layer.reset_parameters()
    for name, value in fresh.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), name


@layers
@modes
def test_initialisation_by_apply(kind, sizes, shape, mode):
    """As users do: of every module that has a weight and a bias."""

    def init(module):
        if hasattr(module, "weight"):
            nn.init.constant_(module.weight, 0.25)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)

    model = nn.Sequential(kind(*sizes, mode=mode, bias=True), nn.ReLU()).apply(init).eval()
    own = model[0]
    x = torch.randn(shape)
    plain = (F.conv2d if kind is HebbianConv2d else F.linear)(x, torch.full_like(own.plasticity, 0.25))
    assert_close(own(x), plain)
    model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    assert own.effective_weight().std() > 0


@layers
@modes
def test_skip_init_and_the_meta_device(kind, sizes, shape, mode):
    layer = skip_init(kind, *sizes, mode=mode, dtype=torch.float64)
    full = kind(*sizes, mode=mode, dtype=torch.float64)
    layer.load_state_dict(full.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.equal(layer(x), full(x))
    assert torch.equal(layer.plasticity, full.plasticity)
    on_meta = kind(*sizes, mode=mode, device="meta")
    assert on_meta.plasticity.is_meta
    made = on_meta.to_empty(device="cpu")
    made.reset_parameters()
    assert made(torch.randn(shape)).isfinite().all()
    for other in (copy.deepcopy(full), pickle.loads(pickle.dumps(full))):
        assert all(torch.equal(other.state_dict()[name], value) for name, value in full.state_dict().items())


def test_signatures_are_torchs_first():
    """help() and editors show the arguments; torch.nn's come first and by position."""
    for kind, plain in ((HebbianConv2d, nn.Conv2d), (HebbianLinear, nn.Linear)):
        own, theirs = (list(inspect.signature(c).parameters.values()) for c in (kind, plain))
        assert [p.name for p in own[: len(theirs)]] == [p.name for p in theirs]
        assert {"rule", "mode", "rate", "k", "similarity"} <= {p.name for p in own if p.kind == p.KEYWORD_ONLY}


@pytest.mark.parametrize("rule", ["plain", "hebb", "oja", "instar", "hard_wta", "soft_wta", "softhebb", "hpca"])
def test_a_single_sample_is_a_batch_of_one(rule):
    for kind, sizes, shape in LAYERS.values():
        torch.manual_seed(0)
        one = kind(*sizes, rule=rule, rate=0.1)
        other = copy.deepcopy(one)
        x = torch.randn(shape[1:])
        assert torch.equal(one(x), other(x[None])[0])
        assert torch.equal(one.plasticity, other.plasticity)


def test_errors_are_torchs_too():
    for layer, x in ((HebbianLinear(4, 3), torch.randn(5, 3)), (HebbianConv2d(3, 4, 3), torch.randn(2, 4, 5, 5))):
        for error in (InputError, RuntimeError):
            with pytest.raises(error, match="x: expected"):
                layer(x)


@layers
@pytest.mark.filterwarnings("ignore")
def test_mixed_layers_compile(kind, sizes, shape):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = kind(*sizes, mode="mixed", rate=0.1)
    compiled = copy.deepcopy(plain)
    run = torch.compile(compiled, backend="aot_eager")
    for seed in (0, 1):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for net, call in ((plain, plain), (compiled, run)):
            net.zero_grad()
            call(x).square().sum().backward()
        for name, parameter in plain.named_parameters():
            assert_close(dict(compiled.named_parameters())[name].grad, parameter.grad)
        assert_close(compiled.plasticity, plain.plasticity)
    assert int(compiled.steps) == int(plain.steps) == 2


@pytest.mark.parametrize("similarity", ["output", "raised_cosine"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_several_winners(k, similarity, groups):
    """Δ_c = Σ over the patches that c wins of (x_p - W_c) / P, patch by patch; k win within each group."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 4, dtype=torch.float64), torch.randn(8, 4 // groups, 3, 2, dtype=torch.float64)
    u = F.conv2d(x, weight, groups=groups)
    each, per_group = 8 // groups, []
    for group in range(groups):
        own = weight[group * each : (group + 1) * each].flatten(1)
        rows = F.unfold(x.chunk(groups, 1)[group], (3, 2)).transpose(1, 2).flatten(0, 1)
        delta = torch.zeros_like(own)
        for row in rows:
            ranked = own @ row
            if similarity == "raised_cosine":
                ranked = ((ranked / (row.norm() * own.norm(dim=1)) + 1) / 2) ** 2
            for channel in sorted(range(each), key=lambda c: -ranked[c].item())[:k]:
                delta[channel] += row - own[channel]
        per_group.append(delta / len(rows))
    expected = torch.cat(per_group).view_as(weight)
    moved = weight.clone()
    found = hebbian_update(moved, x, u, rule="hard_wta", k=k, similarity=similarity, groups=groups, rate=0.1)
    assert_close(found, expected)
    assert_close(moved, weight + 0.1 * expected)
    layer = HebbianConv2d(4, 8, (3, 2), groups=groups, rule="hard_wta", k=k, similarity=similarity, rate=0.1).double()
    layer.plasticity.copy_(weight)
    layer(x)
    assert_close(layer.plasticity, moved)


def test_the_raised_cosine_does_not_favour_long_filters():
    """A long filter has the largest output; the one that points along the patch wins by the cosine."""
    weight = torch.tensor([[1.0, 0.0], [8.0, 8.0]])
    x = torch.tensor([[1.0, 0.1]])
    u = F.linear(x, weight)
    assert u.argmax() == 1
    for similarity, winner in (("output", 1), ("raised_cosine", 0)):
        moved = weight.clone()
        hebbian_update(moved, x, u, rule="hard_wta", similarity=similarity, rate=0.5)
        assert [not torch.equal(moved[c], weight[c]) for c in (0, 1)] == [c == winner for c in (0, 1)]
    assert raised_cosine(x[:, :, None, None], weight[:, :, None, None], u[:, :, None, None]).argmax() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "hard_wta", "k": 0}, "k: expected 1 to 6"),
        ({"rule": "hard_wta", "k": 7}, "k: expected 1 to 6"),
        ({"rule": "hard_wta", "k": 2.0}, "k: expected 1 to 6"),
        ({"rule": "softhebb", "k": 2}, "k: expected 1 for rule 'softhebb'"),
        ({"rule": "oja", "similarity": "raised_cosine"}, "similarity: expected 'output' for rule 'oja'"),
        ({"rule": "hard_wta", "similarity": "cosine"}, "similarity"),
    ],
)
def test_bad_winners(arguments, message):
    for kind, sizes, _ in LAYERS.values():
        with pytest.raises(InputError, match=message):
            kind(*sizes, **arguments)
