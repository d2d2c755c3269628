"""What is made of second derivatives: gradient penalties, meta-learning, Hessian-vector products; of every layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bionas_fast.kernels.feedback import reference
from bionas_fast.nn import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
    connect_direct_feedback,
)
from helpers.constant_feedback import through
from helpers.learned import weights_of
from helpers.tolerances import assert_close

RULES = ("bp", "fa", "usf", "brsf", "frsf", "kp")
every_rule = pytest.mark.parametrize("rule", RULES)
LAYERS = {  # ours, torch.nn's, its arguments, the shape of an input
    "conv1d-same-even": (Conv1d, nn.Conv1d, (3, 4, 4), {"padding": "same"}, (2, 3, 7)),
    "conv1d-reflect": (Conv1d, nn.Conv1d, (3, 4, 5), {"padding": 2, "stride": 2, "padding_mode": "reflect"}, (2, 3, 7)),
    "conv2d": (Conv2d, nn.Conv2d, (3, 4, 3), {"padding": (1, 0), "stride": 2}, (2, 3, 6, 5)),
    "conv2d-valid": (Conv2d, nn.Conv2d, (3, 4, 3), {"padding": "valid", "dilation": 2}, (2, 3, 6, 5)),
    "conv2d-one-channel": (Conv2d, nn.Conv2d, (1, 1, 3), {"padding": 1}, (2, 1, 4, 4)),
    "conv2d-circular-groups": (
        Conv2d, nn.Conv2d, (4, 4, (4, 3)), {"padding": "same", "padding_mode": "circular", "groups": 2}, (2, 4, 5, 5)
    ),
    "conv2d-replicate-depthwise": (
        Conv2d, nn.Conv2d, (4, 8, 3), {"padding": 1, "padding_mode": "replicate", "groups": 4}, (2, 4, 4, 4)
    ),
    "conv2d-unbatched": (Conv2d, nn.Conv2d, (3, 4, 3), {"padding": 1}, (3, 5, 4)),
    "conv2d-1x1-strided": (Conv2d, nn.Conv2d, (3, 4, 1), {"stride": 2}, (2, 3, 5, 4)),
    "conv3d-circular": (
        Conv3d, nn.Conv3d, (2, 3, (1, 3, 2)), {"padding": (0, 1, 1), "padding_mode": "circular"}, (2, 2, 2, 4, 3)
    ),
    "transposed1d": (ConvTranspose1d, nn.ConvTranspose1d, (3, 4, 3), {"stride": 2}, (2, 3, 5)),
    "transposed2d-groups": (
        ConvTranspose2d, nn.ConvTranspose2d, (4, 4, 3), {"stride": 2, "output_padding": 1, "groups": 2}, (2, 4, 3, 3)
    ),
    "transposed3d": (ConvTranspose3d, nn.ConvTranspose3d, (2, 3, 2), {"dilation": 2}, (2, 2, 2, 3, 2)),
    "linear": (Linear, nn.Linear, (4, 3), {}, (2, 4)),
    "linear-rank4": (Linear, nn.Linear, (4, 3), {}, (2, 2, 3, 4)),
}  # fmt: skip
WRAPPERS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "eager": lambda layer: layer,
    "checkpoint": lambda layer: lambda x: checkpoint(layer, x, use_reentrant=False),
    "channels_last": lambda layer: lambda x: layer(_last(x)),
}


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
        yield


def feedback_of(layer: nn.Module, w: Tensor) -> Tensor:
    """B of the layer's next pass for weights ``w``, from the formulas of the rules."""
    w = w.detach()
    if layer.rule == "usf":
        return layer.law.scale * w.sign()
    if layer.rule == "brsf":
        return (layer.law.bound * reference.uniform(w.shape, layer.feedback_stream)).to(w.dtype) * w.sign()
    if layer.rule == "bp":
        return w
    stored = layer.feedback.detach()
    return stored.abs() * w.sign() if layer.rule == "frsf" else stored


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@every_rule
@pytest.mark.parametrize(("ours", "plain", "sizes", "arguments", "shape"), LAYERS.values(), ids=LAYERS)
def test_gradients_of_a_penalty_on_every_gradient(ours, plain, sizes, arguments, shape, rule, wrap):
    torch.manual_seed(0)
    layer = ours(*sizes, **arguments, rule=rule, dtype=torch.float64)
    torch_layer = plain(*sizes, **arguments, dtype=torch.float64)
    leaves = [t.detach().requires_grad_() for t in (torch.randn(shape, dtype=torch.float64), layer.weight, layer.bias)]
    b, start = feedback_of(layer, layer.weight), layer.bias.new_zeros(layer.bias.shape)

    def run(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return functional_call(torch_layer, {"weight": w, "bias": start if bias is None else bias}, x)

    def oracle(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return run(x, w, bias) if rule == "bp" else through(run, x, w, bias, b)

    grad = torch.randn(oracle(*leaves).shape, dtype=torch.float64, requires_grad=True)

    def penalty(first: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([g.square().sum() for g in first]).sum()

    own = [leaves[0].detach().requires_grad_(), *weights_of(layer).values()]
    first = torch.autograd.grad(wrap(layer)(own[0]), own, grad, create_graph=True)
    wanted = torch.autograd.grad(oracle(*leaves), leaves, grad, create_graph=True)
    for actual, expected in zip(first, wanted, strict=True):
        assert_close(actual, expected)
    second = torch.autograd.grad(penalty(first), (*own, grad), allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(penalty(wanted), (*leaves, grad), allow_unused=True, materialize_grads=True)
    for actual, expected in zip(second, wanted, strict=True):
        assert_close(actual, expected)


# Networks


class Network(nn.Module):
    """conv → tanh → 1×1 conv → tanh → linear; and the same with the oracle's layers."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        options = {"rule": rule, "dtype": torch.float64}
        self.conv = Conv2d(2, 4, 3, padding=1, stride=2, **options)
        self.point = Conv2d(4, 3, 1, **options)
        self.head = Linear(12, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.conv(x).tanh()).tanh()
        return self.head(x.flatten(1))

    def written_out(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        def layer(name: str, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
            w, bias = p[f"{name}.weight"], p[f"{name}.bias"]
            own = getattr(self, name)
            return run(x, w, bias) if own.rule == "bp" else through(run, x, w, bias, feedback_of(own, w))

        x = layer("conv", x, lambda x, w, b: F.conv2d(x, w, b, padding=1, stride=2)).tanh()
        return layer("head", layer("point", x, F.conv2d).tanh().flatten(1), F.linear)


def network(rule: str) -> tuple[Network, dict[str, Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    model = Network(rule)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in weights_of(model).items()}
    return model, parameters, torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 1])


def same(actual: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for a, w in zip(actual, wanted, strict=True):
        assert_close(a, w)


@every_rule
def test_a_gradient_penalty(rule):
    model, parameters, x, target = network(rule)

    def gradients(run: Callable[[Tensor], Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
        inputs = x.clone().requires_grad_()
        loss = F.cross_entropy(run(inputs), target)
        (down,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return torch.autograd.grad(loss + 10 * (down.flatten(1).norm(dim=1) - 1).square().mean(), leaves)

    wanted = gradients(lambda x: model.written_out(parameters, x), list(parameters.values()))
    same(gradients(model, list(weights_of(model).values())), wanted)


@every_rule
def test_steps_of_meta_learning(rule):
    """MAML: the outer gradient passes through two steps of SGD; the random numbers of brsf are new in each."""
    model, parameters, x, target = network(rule)
    state = {name: value.clone() for name, value in model.named_buffers()}

    def outer(run: Callable[[dict[str, Tensor]], Tensor], next_draw: Callable[[], None]) -> tuple[Tensor, ...]:
        fast = dict(parameters)
        for _ in range(2):
            loss = F.cross_entropy(run(fast), target)
            made = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            next_draw()
            fast = {name: p - 0.5 * g for (name, p), g in zip(fast.items(), made, strict=True)}
        return torch.autograd.grad(F.cross_entropy(run(fast), 1 - target), list(parameters.values()))

    def next_draw() -> None:
        for name, value in model.named_buffers():
            if name.endswith("stream"):
                value[1] += 1

    actual = outer(lambda p: functional_call(model, p, x), lambda: None)
    model.load_state_dict(state, strict=False)
    same(actual, outer(lambda p: model.written_out(p, x), next_draw))


@every_rule
def test_products_with_the_hessian(rule):
    model, parameters, x, target = network(rule)
    leaves, vector = tuple(parameters.values()), tuple(torch.randn_like(p) for p in parameters.values())

    def loss_of(run: Callable[[dict[str, Tensor]], Tensor]) -> Callable[..., Tensor]:
        return lambda *p: F.cross_entropy(run(dict(zip(parameters, p, strict=True))), target)

    ours, oracle = loss_of(lambda p: functional_call(model, p, x)), loss_of(lambda p: model.written_out(p, x))
    state = {name: value.clone() for name, value in model.named_buffers()}
    for product in (torch.autograd.functional.vhp, torch.autograd.functional.hvp):
        wanted = product(oracle, leaves, vector)[1]
        same(product(ours, leaves, vector)[1], wanted)
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("make", [lambda: Conv2d(2, 3, 3, rule="dfa"), lambda: Conv2d(2, 3, 1, rule="dfa")])
def test_direct_feedback(make):
    """The error of the logits is a function of everything below, and B of nothing."""
    torch.manual_seed(0)
    model = connect_direct_feedback(nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(2)), 2)
    x = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        model(x)
    model, x = model.double(), x.double().requires_grad_()
    layer = model[0]
    (down,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    e = 2 * model(x.detach())
    spread = e[:, :, None, None].expand(-1, -1, *layer(x.detach()).shape[2:])
    wanted = F.conv_transpose2d(spread, layer.feedback)
    assert_close(down, wanted)
    leaves = [*model[2].parameters(), layer.weight]
    direction = torch.randn_like(down)
    same(torch.autograd.grad(down, leaves, direction), torch.autograd.grad(wanted, leaves, direction))


@every_rule
def test_a_second_pass_through_the_first_draws_nothing(rule):
    torch.manual_seed(0)
    layer, x = Conv2d(3, 4, 3, rule=rule), torch.randn(2, 3, 5, 5, requires_grad=True)
    (down,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    draws = [int(value[1]) for name, value in layer.named_buffers() if name.endswith("stream")]
    if down.requires_grad:
        down.square().sum().backward()
    assert [int(value[1]) for name, value in layer.named_buffers() if name.endswith("stream")] == draws


@every_rule
def test_autocast(rule):
    """In bfloat16: B in the dtype of the pass, and no gradient reaches W through it."""
    torch.manual_seed(0)
    layer, x = Conv2d(4, 4, 3, rule=rule), torch.randn(2, 4, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        (down,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    b = feedback_of(layer, layer.weight) if rule != "brsf" else None
    (own,) = torch.autograd.grad(down.square().sum(), layer.weight)
    assert down.dtype == own.dtype == torch.float32
    if b is None:
        return
    w, bias = layer.weight.detach().requires_grad_(), layer.bias.detach()
    leaf = x.detach().requires_grad_()
    run = F.conv2d
    out = run(leaf, w, bias) if rule == "bp" else through(run, leaf, w, bias.requires_grad_(), b)
    (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    (wanted,) = torch.autograd.grad(first.square().sum(), w)
    assert (own - wanted).abs().max() <= 5e-2 * wanted.abs().max()
