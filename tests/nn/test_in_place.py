"""In-place operations around layers, wherever torch.nn's layers permit them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from bionas_fast import rules
from bionas_fast.nn import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    HebbianConv2d,
    HebbianLinear,
    Linear,
    PredictiveConv2d,
    connect_direct_feedback,
)
from helpers.learned import MECHANISMS
from helpers.tolerances import assert_close

RULES = [name for name in MECHANISMS if rules.get(name).mode != "direct"]
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "linear": (lambda **k: Linear(4, 4, **k), (2, 4)),
    "linear-rank3": (lambda **k: Linear(4, 4, **k), (2, 3, 4)),
    "linear-rank4-no-bias": (lambda **k: Linear(4, 4, bias=False, **k), (2, 3, 2, 4)),
    "linear-vector": (lambda **k: Linear(4, 4, **k), (4,)),
    "1x1": (lambda **k: Conv2d(4, 4, 1, **k), (2, 4, 3, 3)),
    "1x1-on-1x1": (lambda **k: Conv2d(4, 4, 1, **k), (2, 4, 1, 1)),
    "1x1-of-1d": (lambda **k: Conv1d(4, 4, 1, **k), (2, 4, 1)),
    "1x1-strided-of-3d": (lambda **k: Conv3d(4, 4, 1, stride=2, **k), (2, 4, 3, 3, 3)),
    "conv1d-circular": (lambda **k: Conv1d(4, 4, 3, padding=1, padding_mode="circular", **k), (2, 4, 5)),
    "conv2d": (lambda **k: Conv2d(4, 4, 3, padding=1, **k), (2, 4, 3, 3)),
    "conv2d-unbatched": (lambda **k: Conv2d(4, 4, 3, padding=1, **k), (4, 3, 3)),
    "conv2d-few-channels": (lambda **k: Conv2d(3, 2, 2, **k), (2, 3, 3, 3)),
    "transposed": (lambda **k: ConvTranspose2d(4, 4, 3, stride=2, output_padding=1, **k), (2, 4, 3, 3)),
    "conv3d-depthwise": (lambda **k: Conv3d(4, 4, 3, padding=1, groups=4, **k), (2, 4, 3, 3, 3)),
}
PLASTIC: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "hebbian-conv": (lambda: HebbianConv2d(4, 4, 3, bias=True), (2, 4, 5, 5)),
    "hebbian-conv-mixed": (lambda: HebbianConv2d(4, 4, 3, mode="mixed"), (2, 4, 5, 5)),
    "hebbian-linear": (lambda: HebbianLinear(4, 4, bias=True), (2, 3, 4)),
    "hebbian-linear-mixed": (lambda: HebbianLinear(4, 4, mode="mixed"), (2, 3, 4)),
    "predictive": (lambda: PredictiveConv2d(4, 4, 3), (2, 4, 5, 5)),
    "predictive-local": (lambda: PredictiveConv2d(4, 4, 3, credit="local"), (2, 4, 5, 5)),
    "predictive-no-steps": (lambda: PredictiveConv2d(4, 4, 3, credit="local", steps=0), (2, 4, 5, 5)),
}
ENGINES: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "eager": lambda model: model,
    "checkpoint": lambda model: lambda x: checkpoint(model, x, use_reentrant=False),
    "reentrant": lambda model: lambda x: checkpoint(model, x, use_reentrant=True),
    "registered": lambda model: lambda x: _in_a_mode(model, x),
}


def _in_a_mode(model: nn.Module, x: Tensor) -> Tensor:
    with FlopCounterMode(display=False):
        return model(x)


def in_memory(x: Tensor, last: bool) -> Tensor:
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=layouts[x.dim()]) if last and x.dim() in layouts else x


def gradients(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The output, and gradients of the input and the parameters."""
    x = x.detach().requires_grad_()
    y = run(x)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    made = [x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    return [y.detach(), *(g for g in made if g is not None)]


def same_in_place_and_not(layer: nn.Module, x: Tensor, engine: str) -> None:
    """In place before and after the layer, against the same out of place."""
    models = [nn.Sequential(nn.Hardtanh(), nn.Identity(), layer, nn.ReLU())]
    models.append(nn.Sequential(nn.Hardtanh(), nn.Dropout(0.0), copy.deepcopy(layer), nn.ReLU()))
    models[1][1].forward = lambda t: t.mul_(1)
    models[1][3] = nn.ReLU(inplace=True)
    if getattr(layer, "rule", None) == "dfa":
        shape = layer(x).shape
        for model in models:
            model.append(nn.Flatten())
            connect_direct_feedback(model, int(shape[1:].numel()))
    wanted, actual = (gradients(model, ENGINES[engine](model), x) for model in models)
    for a, w in zip(actual, wanted, strict=True):
        assert torch.equal(a, w)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_around_a_layer(make, shape, rule, engine, last):
    torch.manual_seed(0)
    layer, x = make(rule=rule), in_memory(torch.randn(shape), last)
    same_in_place_and_not(layer, x, engine)


@pytest.mark.parametrize(("make", "shape"), PLASTIC.values(), ids=PLASTIC)
def test_around_a_layer_that_is_no_feedback_layer(make, shape):
    torch.manual_seed(0)
    same_in_place_and_not(make(), torch.randn(shape), "eager")


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"linear-vector", "conv2d-unbatched"}))
def test_around_a_layer_with_direct_feedback(name, last):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    same_in_place_and_not(make(rule="dfa"), in_memory(torch.randn(shape), last), "eager")


@pytest.mark.parametrize("rule", RULES)
def test_in_compiled_models(rule):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(
        Conv2d(3, 4, 3, rule=rule), nn.ReLU(inplace=True), Conv2d(4, 4, 1, rule=rule), nn.ReLU(inplace=True),
        nn.Flatten(2), Linear(9, 2, rule=rule), nn.ReLU(inplace=True),
    )  # fmt: skip
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 5, 5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for actual, wanted in zip(gradients(model, compiled, x), gradients(twin, twin, x), strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize("rule", RULES)
def test_a_frozen_layer_permits_changes_of_its_input(rule):
    torch.manual_seed(0)
    layer, x = Linear(4, 3, rule=rule, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    layer.weight.requires_grad_(False)
    b, hidden = layer.feedback_weight(), x * 1
    y = layer(hidden)
    hidden.mul_(2)
    grad = torch.randn_like(y)
    assert_close(torch.autograd.grad(y, x, grad)[0], grad @ b)


@pytest.mark.parametrize("rule", RULES)
def test_the_first_layer_permits_changes_of_its_weight(rule):
    torch.manual_seed(0)
    layer, x = Linear(4, 3, rule=rule, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    grad = torch.randn_like(y)
    assert_close(torch.autograd.grad(y, layer.weight, grad)[0], grad.t() @ x)
