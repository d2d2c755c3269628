"""Transforms of torch.func over layers, against loops over samples and models, and against each other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError, rules
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
    frozen_plasticity,
)
from helpers.learned import MECHANISMS, weights_of
from helpers.registries import restored
from helpers.supernets import with_nodes
from helpers.tolerances import assert_close

Weights = dict[str, Tensor]

LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "linear": (lambda **k: Linear(4, 3, **k), (4,)),
    "linear-rank3": (lambda **k: Linear(4, 3, bias=False, **k), (3, 4)),
    "conv1d-same": (lambda **k: Conv1d(3, 4, 4, padding="same", **k), (3, 6)),
    "conv2d-stride-groups": (lambda **k: Conv2d(4, 6, 3, stride=2, padding=1, groups=2, **k), (4, 5, 5)),
    "conv2d-depthwise-circular": (
        lambda **k: Conv2d(4, 4, 3, padding=1, groups=4, dilation=1, padding_mode="circular", **k), (4, 4, 4)
    ),
    "conv2d-1x1": (lambda **k: Conv2d(4, 3, 1, **k), (4, 3, 3)),
    "transposed": (lambda **k: ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, groups=2, **k), (4, 3, 3)),
    "conv3d": (lambda **k: Conv3d(2, 3, 2, **k), (2, 3, 3, 3)),
}  # fmt: skip
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
every_rule = pytest.mark.parametrize("rule", MECHANISMS)
CLASSES = 2


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch's own, when functions of torch.func are imported or first used.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        yield


def network(make: Callable[..., nn.Module], shape: tuple[int, ...], rule: str) -> nn.Module:
    """tanh → layer → tanh → linear: a layer whose input has an error."""
    layer = make(rule=rule, dtype=torch.float64)
    size = layer(torch.zeros(1, *shape, dtype=torch.float64)).numel()
    head = Linear(size, CLASSES, rule=rule, dtype=torch.float64)
    model = nn.Sequential(nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), head)
    return connect_direct_feedback(model, CLASSES)


def loss_of(model: nn.Module, buffers: Weights | None = None) -> Callable[..., Tensor]:
    """The loss of one sample, as a function of the parameters, the sample and, by default, the model's own buffers."""

    def loss(parameters: Weights, x: Tensor, buffers: Weights | None = buffers) -> Tensor:
        return functional_call(model, (parameters, buffers or {}), (x[None],)).square().sum()

    return loss


def by_autograd(model: nn.Module, x: Tensor) -> tuple[Weights, Tensor]:
    """Gradients of the parameters and of one sample; the random streams of the model stand still."""
    model = copy.deepcopy(model)
    x = x.detach().requires_grad_()
    names, parameters = zip(*model.named_parameters(), strict=True)
    *made, down = torch.autograd.grad(model(x[None]).square().sum(), (*parameters, x))
    return dict(zip(names, made, strict=True)), down


def parameters_of(model: nn.Module) -> Weights:
    return {name: p.detach() for name, p in model.named_parameters()}


def same(actual: Weights, wanted: Weights) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(actual[name], value)


def streams(model: nn.Module) -> list[int]:
    return [int(value[1]) for name, value in model.named_buffers() if name.endswith("stream")]


@every_rule
@every_layer
def test_gradients_of_every_sample(make, shape, rule):
    torch.manual_seed(0)
    model, x = network(make, shape, rule), torch.randn(3, *shape, dtype=torch.float64)
    each = [by_autograd(model, sample) for sample in x]
    own, down = vmap(grad(loss_of(model), (0, 1)), (None, 0))(parameters_of(model), x)
    same(own, {name: torch.stack([g[name] for g, _ in each]) for name in own})
    assert_close(down, torch.stack([d for _, d in each]))
    assert streams(model) == [1] * len(streams(model)), "one draw for the batch, and the next pass has another one"


@every_rule
@every_layer
def test_gradients_outside_of_vmap(make, shape, rule):
    torch.manual_seed(0)
    model, x = network(make, shape, rule), torch.randn(3, *shape, dtype=torch.float64)
    wanted = [by_autograd(model, sample) for sample in x]

    def total(parameters: Weights, x: Tensor) -> Tensor:
        return vmap(loss_of(model), (None, 0))(parameters, x).sum()

    own, down = grad(total, (0, 1))(parameters_of(model), x)
    same(own, {name: torch.stack([g[name] for g, _ in wanted]).sum(0) for name in own})
    assert_close(down, torch.stack([d for _, d in wanted]))


@pytest.mark.parametrize("dim", [0, 1])
@every_rule
@every_layer
def test_ensembles(make, shape, rule, dim):
    torch.manual_seed(0)
    models, x = [network(make, shape, rule) for _ in range(3)], torch.randn(shape, dtype=torch.float64)
    for model in models:
        if rule == "brsf":
            for _ in range(torch.randint(3, ())):
                by_autograd(model, x)
    wanted = [by_autograd(model, x) for model in models]
    parameters, buffers = stack_module_state(models)
    parameters, buffers = ({n: v.detach().movedim(0, dim) for n, v in part.items()} for part in (parameters, buffers))
    own, down = vmap(grad(loss_of(models[0]), (0, 1)), (dim, None, dim))(parameters, x, buffers)
    same(own, {name: torch.stack([g[name] for g, _ in wanted]) for name in own})
    assert_close(down, torch.stack([d for _, d in wanted]))
    for name, value in buffers.items():
        if name.endswith("stream"):
            assert value.movedim(dim, 0)[:, 1].tolist() == [1] * 3, "every model has the next draw"


@every_rule
@every_layer
def test_jacobians(make, shape, rule):
    torch.manual_seed(0)
    model, x = network(make, shape, rule), torch.randn(shape, dtype=torch.float64)
    # In the forward mode, no output depends on learned feedback.
    parameters = {name: p.detach() for name, p in weights_of(model).items()}

    def run(parameters: Weights, x: Tensor) -> Tensor:
        return functional_call(model, (parameters, {}), (x[None],))[0]

    wanted = []
    for k in range(CLASSES):
        twin, sample = copy.deepcopy(model), x.clone().requires_grad_()
        names, leaves = zip(*weights_of(twin).items(), strict=True)
        row = torch.autograd.grad(twin(sample[None])[0, k], (*leaves, sample))
        wanted.append(dict(zip((*names, "x"), row, strict=True)))
    wanted = {name: torch.stack([rows[name] for rows in wanted]) for name in wanted[0]}
    # The random numbers of this pass: a pass of the reverse mode advances them.
    state = copy.deepcopy(model.state_dict())
    for transform in (jacrev, jacfwd):
        own, down = transform(run, (0, 1))(parameters, x)
        same({**own, "x": down}, wanted)
        model.load_state_dict(state)


@every_rule
@every_layer
def test_second_derivatives(make, shape, rule):
    """Reverse over reverse against autograd's; forward over reverse is the same, as B is a constant in both."""
    torch.manual_seed(0)
    model, x = network(make, shape, rule), torch.randn(2, *shape, dtype=torch.float64)
    vector = torch.randn(shape, dtype=torch.float64)
    parameters, state = parameters_of(model), copy.deepcopy(model.state_dict())

    def down(x: Tensor) -> Tensor:
        return grad(loss_of(model), 1)(parameters, x)

    for sample in x:
        leaf = sample.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(leaf[None]).square().sum(), leaf, create_graph=True)
        (wanted,) = torch.autograd.grad(first, leaf, vector)
        model.load_state_dict(state)
        (actual,) = vjp(down, sample)[1](vector)
        assert_close(actual, wanted)
        model.load_state_dict(state)
        rows = hessian(lambda sample: loss_of(model)(parameters, sample))(sample)
        assert_close(torch.tensordot(vector, rows, len(shape)), wanted)
        model.load_state_dict(state)


@every_rule
def test_forward_mode_is_the_transpose_of_the_reverse_mode(rule):
    """torch.autograd.forward_ad and torch.func.jvp: ⟨e, J t⟩ = ⟨Jᵀ e, t⟩."""
    torch.manual_seed(0)
    model = network(*LAYERS["conv2d-stride-groups"], rule)
    x, tangent = torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    error = torch.randn(2, CLASSES, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level():
        pushed = forward_ad.unpack_dual(model(forward_ad.make_dual(x, tangent))).tangent
    assert_close(pushed, jvp(model, (x,), (tangent,))[1])
    (pulled,) = torch.autograd.grad(model(leaf), leaf, error)
    assert_close((pushed * error).sum(), (pulled * tangent).sum())


@pytest.mark.parametrize("rule", [name for name in MECHANISMS if rules.get(name).mode != "direct"])
@every_layer
def test_batches_of_errors(make, shape, rule):
    """torch.autograd.grad with is_grads_batched, as torch.autograd.functional.jacobian(vectorize=True) uses it."""
    torch.manual_seed(0)
    layer, x = make(rule=rule, dtype=torch.float64), torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    errors = torch.randn(3, *layer(x).shape, dtype=torch.float64)
    leaves = (x, *layer.parameters())
    wanted = [torch.autograd.grad(copy.deepcopy(layer)(x), x, e)[0] for e in errors]
    actual, *_ = torch.autograd.grad(layer(x), leaves, errors, is_grads_batched=True)
    assert_close(actual, torch.stack(wanted))
    assert streams(layer) == [1] * len(streams(layer))


@pytest.mark.parametrize("rule", [name for name in rules.names() if rules.get(name).signal is not None])
def test_signals_of_samples(rule):
    torch.manual_seed(0)
    model, x = network(*LAYERS["conv2d-1x1"], rule), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    parameters, target = parameters_of(model), torch.tensor([0, 1, 1])

    def loss(parameters: Weights, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), target[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, target)
    for index in range(3):
        model.zero_grad()
        F.cross_entropy(model(x[index : index + 1]), target[index : index + 1]).backward()
        for name, parameter in model.named_parameters():
            assert_close(found[name][index], parameter.grad)


@every_rule
def test_passes_in_flight_keep_their_draws(rule):
    torch.manual_seed(0)
    model, x = network(*LAYERS["linear"], rule), torch.randn(2, 4, dtype=torch.float64)
    parameters = parameters_of(model)
    wanted = [by_autograd(model, sample)[1] for sample in x]
    pulls = [vjp(lambda x: loss_of(model)(parameters, x), sample)[1] for sample in x]
    for pull, down in zip(pulls, wanted, strict=True):
        assert_close(pull(torch.ones((), dtype=torch.float64))[0], down)
    assert streams(model) == [2] * len(streams(model))


@every_rule
def test_in_evaluation_no_random_numbers_are_drawn(rule):
    torch.manual_seed(0)
    model, x = network(*LAYERS["conv1d-same"], rule).eval(), torch.randn(3, 3, 6, dtype=torch.float64)
    vmap(grad(loss_of(model), 1), (None, 0))(parameters_of(model), x)
    assert streams(model) == [0] * len(streams(model))


# Layers that learn by themselves

PLASTIC: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "hebbian-conv": (lambda: HebbianConv2d(2, 3, 3, dtype=torch.float64), (2, 5, 5)),
    "hebbian-conv-mixed": (lambda: HebbianConv2d(2, 3, 3, mode="mixed", dtype=torch.float64), (2, 5, 5)),
    "hebbian-linear-mixed": (lambda: HebbianLinear(4, 3, mode="mixed", dtype=torch.float64), (4,)),
    "predictive": (lambda: PredictiveConv2d(2, 3, 3, dtype=torch.float64), (2, 5, 5)),
    "predictive-guarded": (lambda: PredictiveConv2d(2, 3, 3, step_size=0.1, dtype=torch.float64), (2, 5, 5)),
    "predictive-local": (lambda: PredictiveConv2d(2, 3, 3, credit="local", dtype=torch.float64), (2, 5, 5)),
}
every_plastic = pytest.mark.parametrize(("make", "shape"), PLASTIC.values(), ids=PLASTIC)


@every_plastic
def test_plastic_layers_that_do_not_learn(make, shape):
    torch.manual_seed(0)
    layer = make()
    frozen = not isinstance(layer, PredictiveConv2d)
    model = nn.Sequential(nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2, dtype=torch.float64))
    x = torch.randn(3, *shape, dtype=torch.float64)
    model.eval()(x)
    model.train(frozen)
    with frozen_plasticity(model):
        each = [by_autograd(model, sample) for sample in x]
        own, down = vmap(grad(loss_of(model), (0, 1)), (None, 0))(parameters_of(model), x)
    same(own, {name: torch.stack([g[name] for g, _ in each]) for name in own})
    assert_close(down, torch.stack([d for _, d in each]))


@every_plastic
def test_plastic_layers_that_learn_say_what_to_do(make, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(2, dtype=torch.float64)).eval(), torch.randn(3, *shape)
    x = x.double()
    model(x)
    model.train()
    before = copy.deepcopy(model.state_dict())
    for call in (
        lambda: vmap(grad(loss_of(model)), (None, 0))(parameters_of(model), x),
        lambda: grad(loss_of(model))(parameters_of(model), x[0]),
        lambda: vmap(loss_of(model), (None, 0))(parameters_of(model), x),
    ):
        with pytest.raises(InputError, match=r"torch\.func.*eval\(\)"):
            call()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


# Whole networks and compilers


def test_supernets():
    torch.manual_seed(0)
    options = {"channels": 2, "cells": 1, "num_classes": CLASSES, "in_channels": 3, "seed": 0}
    options["space"] = with_nodes("bionas", 2)
    modular = bf.build_supernet(**options, engine="modular").double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    down = vmap(grad(loss_of(modular), 1), (None, 0))(parameters_of(modular), x)
    assert_close(down, *torch.autograd.grad(modular(leaf).square().sum(), leaf))
    stacked = bf.build_supernet(**options, engine="stacked").double().eval()
    with pytest.raises(InputError, match=r"torch\.func.*engine='modular'"):
        grad(loss_of(stacked), 1)(parameters_of(stacked), x[0])


#: docs/rules-and-layers.md says so.
loses_the_rule = pytest.mark.xfail(
    torch.__version__.startswith("2.11."), reason="the compiler of torch 2.11 loses the rule of layers in a transform"
)


@pytest.mark.parametrize("rule", ["bp", *(pytest.param(rule, marks=loses_the_rule) for rule in ("frsf", "brsf"))])
def test_compilers_leave_transforms_to_pytorch(rule):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = network(*LAYERS["conv1d-same"], rule).eval(), torch.randn(2, 3, 6, dtype=torch.float64)
    run = vmap(grad(loss_of(model), 1), (None, 0))
    wanted = run(parameters_of(model), x)
    assert_close(torch.compile(run, backend="aot_eager")(parameters_of(model), x), wanted)


# Rules of a user's own


class Noisy(rules.Rule):
    """The weights, each scaled by random numbers that are new in every step."""

    name = "noisy_under_transforms"
    redraws = True

    def feedback(self, weight, state):
        return weight * (0.5 + state.uniform())


@pytest.mark.parametrize("make", [LAYERS["linear"], LAYERS["conv2d-stride-groups"]], ids=["linear", "conv"])
def test_a_user_defined_rule(make):
    layer, shape = make
    with restored():
        rules.register(Noisy)
        test_gradients_of_every_sample(layer, shape, Noisy.name)
        test_gradients_outside_of_vmap(layer, shape, Noisy.name)
        test_ensembles(layer, shape, Noisy.name, 0)
        test_second_derivatives(layer, shape, Noisy.name)
