"""Hebbian layers in the places where layers of torch.nn are used; and several winners, against their formula."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import InputError
from bionas_fast.functional import hebbian_activity, hebbian_update
from bionas_fast.nn import HebbianConv2d, HebbianLinear, PredictiveConv2d
from helpers.native import skip_without
from helpers.tolerances import assert_close

LAYERS = {
    "conv": (HebbianConv2d, nn.Conv2d, (4, 6, 3), (4, 5, 5)),
    "grouped": (lambda *a, **k: HebbianConv2d(*a, groups=2, **k), nn.Conv2d, (4, 6, 3), (4, 5, 5)),
    "linear": (HebbianLinear, nn.Linear, (4, 6), (4,)),
}
KINDS = pytest.mark.parametrize(("make", "plain", "sizes", "shape"), LAYERS.values(), ids=LAYERS)
MODES = pytest.mark.parametrize("mode", ["hebbian", "mixed"])


@MODES
@KINDS
@pytest.mark.parametrize("norm", [None, 2.0])
def test_reset_parameters_starts_anew(make, plain, sizes, shape, mode, norm):
    torch.manual_seed(0)
    layer = make(*sizes, mode=mode, bias=True, norm=norm, rate=0.1)
    start = copy.deepcopy(layer.state_dict())
    layer(torch.randn(2, *shape))
    torch.manual_seed(0)
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, start[name]), name
    if plain is nn.Linear or layer.groups == 1:
        torch.manual_seed(0)
        own = plain(*sizes)
        weight = own.weight if norm is None or mode == "mixed" else norm * F.normalize(own.weight.flatten(1), dim=1)
        assert_close(layer.weight.detach(), weight.detach().view_as(layer.weight))
        assert torch.equal(layer.bias, own.bias)


@MODES
@KINDS
def test_initialisation_functions_reach_the_weights(make, plain, sizes, shape, mode):
    def init(module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(module.weight)
            nn.init.constant_(module.bias, 0.5)

    layer = make(*sizes, mode=mode, bias=True)
    nn.Sequential(layer).apply(init)
    rows = layer.weight.detach().flatten(1)
    short = rows if len(rows) <= rows.shape[1] else rows.T
    assert_close(short @ short.T, torch.eye(len(short)))
    x = torch.randn(2, *shape)
    groups = getattr(layer, "groups", 1)
    effective = layer.weight + layer.plastic_scale * layer.plasticity if mode == "mixed" else layer.plasticity
    expected = F.linear(x, effective) if x.dim() == 2 else F.conv2d(x, effective, groups=groups)
    bias = layer.bias if x.dim() == 2 else layer.bias[:, None, None]
    assert_close(layer.eval()(x).detach(), (expected + bias).detach())


@MODES
@KINDS
def test_one_sample_without_a_batch(make, plain, sizes, shape, mode):
    torch.manual_seed(0)
    layer = make(*sizes, mode=mode, rate=0.1)
    batched, x = copy.deepcopy(layer), torch.randn(shape)
    for _ in range(2):
        assert_close(layer(x), batched(x[None])[0])
    assert layer.steps == 2
    assert_close(layer.plasticity, batched.plasticity)


def test_predictive_coding_of_one_image():
    torch.manual_seed(0)
    layer = PredictiveConv2d(2, 3, 3, padding=1)
    x, batched = torch.randn(2, 5, 5), copy.deepcopy(layer)
    assert_close(layer(x), batched(x[None])[0])
    assert_close(layer.energy(x), batched.energy(x[None]))


@pytest.mark.parametrize("layer", [HebbianConv2d(4, 6, 3), HebbianLinear(4, 6)], ids=["conv", "linear"])
def test_wrong_shapes_raise_what_torch_nn_raises(layer):
    own = nn.Conv2d(4, 6, 3) if isinstance(layer, nn.Conv2d) else nn.Linear(4, 6)
    for shape in ((2, 9), (9, 5, 5), (2, 9, 5, 5), (), (1, 1, 1, 1, 9)):
        x = torch.randn(shape)
        with pytest.raises(RuntimeError):
            own(x)
        with pytest.raises(RuntimeError, match="x: expected") as error:
            layer(x)
        assert isinstance(error.value, InputError)


@pytest.mark.parametrize("make", [HebbianConv2d, HebbianLinear, PredictiveConv2d])
def test_signatures_name_every_argument(make):
    parameters = inspect.signature(make).parameters
    assert all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    base = inspect.signature(nn.Linear if make is HebbianLinear else nn.Conv2d).parameters
    assert set(base) - set(parameters) <= ({"padding_mode"} if make is PredictiveConv2d else set())
    if make is not PredictiveConv2d:
        assert list(parameters)[: len(base)] == list(base)


@MODES
@KINDS
def test_skip_init_meta_and_copies(make, plain, sizes, shape, mode):
    kind = make if isinstance(make, type) else HebbianConv2d
    source = kind(*sizes, mode=mode, dtype=torch.float64)
    empty = nn.utils.skip_init(kind, *sizes, mode=mode, dtype=torch.float64)
    assert empty.plasticity.dtype == torch.float64 and empty.plasticity.device.type == "cpu"
    on_meta = kind(*sizes, mode=mode, device="meta", dtype=torch.float64).to_empty(device="cpu")
    x = torch.randn(2, *shape, dtype=torch.float64)
    expected = source.eval()(x)
    for layer in (empty, on_meta):
        layer.load_state_dict(source.state_dict())
        for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin.eval()(x), expected)


@MODES
@KINDS
def test_compiled_training(make, plain, sizes, shape, mode):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = make(*sizes, mode=mode, rate=0.1, rule="hebb")
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(2, *shape, requires_grad=True)
        own = x.detach().clone().requires_grad_()
        for run, v in ((layer, x), (compiled, own)):
            run(v).square().sum().backward()
        assert_close(own.grad, x.grad)
        assert_close(twin.plasticity, layer.plasticity)
        for a, e in zip(twin.parameters(), layer.parameters(), strict=True):
            assert_close(a.grad, e.grad)


# Several winners, and another similarity


def written_out(weight: Tensor, x: Tensor, k: int, similarity: str, rule: str) -> Tensor:
    """Δ, position by position, of x [P, D] and W [K, D]."""
    delta = torch.zeros_like(weight)
    for row in x:
        u = weight @ row
        ranked = ((u / (weight.norm(dim=1) * row.norm()) + 1) / 2) ** 2 if similarity == "raised_cosine" else u
        best = sorted(range(len(u)), key=lambda i: -float(ranked[i]))[:k]
        won = torch.tensor([float(i in best) for i in range(len(u))], dtype=u.dtype)
        soft = (1.5 * ranked).exp() / (1.5 * ranked).exp().sum()
        y = {"hard_wta": won, "soft_wta": soft, "softhebb": soft * (2 * won - 1)}[rule]
        decay = y * u if rule == "softhebb" else y
        delta += y[:, None] * row - decay[:, None] * weight
    return delta / len(x)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("similarity", ["output", "raised_cosine"])
@pytest.mark.parametrize(
    ("rule", "k"), [("hard_wta", 1), ("hard_wta", 2), ("hard_wta", 5), ("soft_wta", 1), ("softhebb", 1)]
)
def test_winners_are_their_formula(rule, k, similarity, backend):
    skip_without(backend)
    torch.manual_seed(0)
    dtype = torch.float64 if backend == "reference" else torch.float32
    # Filters of very different lengths: the two similarities rank them differently.
    scale = torch.tensor([0.1, 1.0, 3.0, 0.5, 2.0], dtype=dtype)[:, None, None, None]
    weights = [torch.randn(5, 2, 2, 2, dtype=dtype) * scale for _ in range(2)]
    x = torch.randn(3, 4, 4, 4, dtype=dtype)
    expected = []
    for weight, own in zip(weights, x.chunk(2, 1), strict=True):
        rows = F.unfold(own, 2).transpose(1, 2).flatten(0, 1)
        made = written_out(weight.flatten(1).double(), rows.double(), k, similarity, rule)
        expected.append(made.view_as(weight).to(dtype))
    weight = torch.cat(weights)
    u = F.conv2d(x, weight, groups=2)
    options = {"rule": rule, "k": k, "similarity": similarity, "temperature": 1.5, "groups": 2, "backend": backend}
    moved = weight.clone()
    delta = hebbian_update(moved, x, u, rate=0.5, **options)
    assert_close(delta, torch.cat(expected))
    assert_close(moved, weight + 0.5 * torch.cat(expected))


@KINDS
def test_layers_have_several_winners(make, plain, sizes, shape):
    torch.manual_seed(0)
    layer = make(*sizes, rule="hard_wta", k=2, similarity="raised_cosine", rate=0.3)
    moved, x = layer.plasticity.clone(), torch.randn(3, *shape)
    groups = getattr(layer, "groups", 1)
    u = layer(x)
    arguments = {"groups": groups} if x.dim() == 4 else {}
    hebbian_update(moved, x, u, rule="hard_wta", k=2, similarity="raised_cosine", rate=0.3, **arguments)
    assert_close(layer.plasticity, moved)
    y = hebbian_activity(u, "hard_wta", k=2, groups=groups)
    assert (y.unflatten(1, (groups, -1)).sum(2) == 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: expected 1 to 6, the channels of a group, got 0"),
        ({"k": 7}, "k: expected 1 to 6, the channels of a group, got 7"),
        ({"k": 1.5}, "k: expected 1 to 6"),
        ({"k": 2, "rule": "softhebb"}, "k: expected 1 for rule 'softhebb', got 2"),
        ({"similarity": "cosine"}, "unknown similarity 'cosine'; did you mean 'raised_cosine'"),
        ({"similarity": "raised_cosine", "rule": "oja"}, "similarity: expected 'output' for rule 'oja'"),
    ],
)
def test_bad_winners(change, message):
    given = {"rule": "hard_wta"} | change
    x, weight = torch.randn(3, 4), torch.randn(6, 4)
    for call in (
        lambda: HebbianLinear(4, 6, **given),
        lambda: HebbianConv2d(4, 12, 1, groups=2, **given),
        lambda: hebbian_update(weight, x, x @ weight.T, **given),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(InputError, match="y: expected none together with k"):
        hebbian_update(weight, x, x @ weight.T, x @ weight.T, rule="hard_wta", k=2)


@KINDS
def test_the_threshold_of_bcm_follows_its_formula(make, plain, sizes, shape):
    """θ is the mean of u² in the first batch, then moves by a quarter of the way; it is used before it moves."""
    torch.manual_seed(0)
    layer = make(*sizes, rule="bcm", rate=0.3, averaging=0.25).double()
    weight, theta = layer.plasticity.clone(), None
    for _ in range(3):
        x = torch.randn(3, *shape, dtype=torch.float64)
        u = layer(x).detach()
        rows = u.movedim(1, -1).flatten(0, -2) if x.dim() == 4 else u.flatten(0, -2)
        square = rows.square().mean(0)
        theta = square if theta is None else theta
        y = u * (u - (theta.view(-1, 1, 1) if x.dim() == 4 else theta))
        arguments = {"groups": getattr(layer, "groups", 1)} if x.dim() == 4 else {}
        hebbian_update(weight, x, u, y, rule="plain", rate=0.3, **arguments)
        theta = 0.75 * theta + 0.25 * square
        assert_close(layer.plasticity, weight)
        assert_close(layer.threshold, theta)
    layer(x[:0])
    layer.eval()(x)
    assert_close(layer.threshold, theta)
    assert "threshold" in layer.state_dict()
    again = make(*sizes, rule="bcm").double()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.threshold, layer.threshold)
    layer.reset_parameters()
    assert not layer.threshold.any()
    assert type(again.to_torch()) is plain


def test_the_threshold_belongs_to_bcm():
    weight, x = torch.randn(3, 4), torch.randn(5, 4)
    for settings in ({"rule": "oja", "threshold": torch.ones(3)}, {"rule": "bcm", "threshold": torch.ones(2)}):
        with pytest.raises(InputError, match=r"threshold: expected \[3\], of rule 'bcm'"):
            hebbian_update(weight, x, x @ weight.t(), **settings)
    with pytest.raises(InputError, match="averaging: expected above 0"):
        HebbianLinear(3, 4, rule="bcm", averaging=0.0)
    assert HebbianLinear(3, 4).threshold is None
