"""Direct feedback in several threads, models and gradient checkpoints: each pass by itself, against one pass alone."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from bionas_fast import InputError, true_gradients
from bionas_fast.nn import (
    Conv2d,
    ConvTranspose2d,
    HebbianLinear,
    Linear,
    connect_direct_feedback,
    convert,
    frozen_plasticity,
)
from helpers.tolerances import assert_close

CLASSES = 3


def linears() -> list[nn.Module]:
    sizes = (6, 8, 8, 8)
    layers = [m for a, b in pairwise(sizes) for m in (Linear(a, b, rule="dfa"), nn.Tanh())]
    return [*layers, Linear(8, CLASSES, rule="dfa")]


def images() -> list[nn.Module]:
    return [
        Conv2d(2, 4, 3, padding=1, rule="dfa"), nn.ReLU(inplace=True), Conv2d(4, 4, 1, rule="dfa"), nn.Tanh(),
        ConvTranspose2d(4, 3, 2, 2, rule="dfa"), nn.ReLU(inplace=True), nn.Flatten(), Linear(192, CLASSES, rule="dfa"),
    ]  # fmt: skip


SHAPES = {linears: (4, 6), images: (2, 2, 4, 4)}


def build(make: Callable[[], list[nn.Module]], wrap: Callable[..., nn.Module] = nn.Sequential) -> nn.Module:
    torch.manual_seed(0)
    return connect_direct_feedback(wrap(*make()), CLASSES).double()


def batch(make: Callable[[], list[nn.Module]], seed: int = 0) -> Tensor:
    return torch.randn(SHAPES[make], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(model: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """By backward() on copies of the leaves, as re-entrant checkpoints have it."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    (run or model)(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


def once(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()]))


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


# Threads


@pytest.mark.parametrize("start", ["plain", "copied-context"])
def test_threads_do_not_share_a_pass(start):
    model = build(linears)
    xs = [batch(linears, seed) for seed in range(8)]
    expected = [once(model, x) for x in xs]
    model(xs[0].requires_grad_())  # the context that the threads copy has run a pass

    def work(first: int) -> None:
        for i in range(first, first + 40):
            same(once(model, xs[i % 8]), expected[i % 8])

    with ThreadPoolExecutor(6) as pool:
        calls = [copy_context().run if start == "copied-context" else (lambda f, *a: f(*a)) for _ in range(6)]
        for done in [pool.submit(call, work, i) for i, call in enumerate(calls)]:
            done.result()


def test_a_server_of_coroutines():
    model = build(linears)
    xs = [batch(linears, seed) for seed in range(12)]
    expected = [once(model, x) for x in xs]

    async def serve() -> list[list[Tensor]]:
        return await asyncio.gather(*(asyncio.to_thread(once, model, x) for x in xs))

    for actual, wanted in zip(asyncio.run(serve()), expected, strict=True):
        same(actual, wanted)


def test_contexts_belong_to_their_thread():
    """One thread attacks with true gradients, and one evaluates with frozen plasticity, while another trains."""
    model = nn.Sequential(Linear(6, 4, rule="fa"), HebbianLinear(4, 4, rate=0.1)).double()
    x = batch(linears)
    inside, go = threading.Event(), threading.Event()

    def attack() -> None:
        with true_gradients(model), frozen_plasticity(model), true_gradients(model):
            inside.set()
            assert go.wait(10)
            before = model[1].plasticity.clone()
            model(x)
            assert model[0].true_gradient and torch.equal(model[1].plasticity, before)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(attack)
        assert inside.wait(10)
        assert not model[0].true_gradient
        before = model[1].plasticity.clone()
        model(x)
        assert not torch.equal(model[1].plasticity, before)
        with true_gradients(model):
            go.set()
            done.result()
            assert model[0].true_gradient
    assert not model[0].true_gradient
    assert copy.deepcopy(model)(x).shape == (4, 4)


# Models


class Boom(nn.Module):
    on = False

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            raise ValueError("interrupted")
        return x


def test_an_exception_leaves_nothing_behind():
    boom = Boom()
    model = build(lambda: [*linears()[:4], boom, *linears()[4:]])
    x = batch(linears)
    expected = once(model, x)
    for module in (boom, model):  # inside a layer, and inside a hook
        handle = None
        if module is boom:
            boom.on = True
        else:
            handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises((ValueError, ZeroDivisionError)):
            model(x.requires_grad_())
        boom.on = False
        if handle is not None:
            handle.remove()
        for twin in (model, copy.deepcopy(model)):
            same(once(twin, x), expected)
        with pytest.raises(InputError, match="outside the forward pass"):
            model[0](x)
    plain = build(linears)
    same(once(pickle.loads(pickle.dumps(plain)), x), once(plain, x))


class Twice(nn.Sequential):
    """Calls itself, as test-time augmentation does."""

    def forward(self, x: Tensor, again: bool = True) -> Tensor:
        y = super().forward(x)
        return y + self(-x, again=False) if again else y


def test_a_model_that_calls_itself():
    model, x = build(linears, Twice), batch(linears)
    plain = build(linears)
    x = x.requires_grad_()
    y = plain(x) + plain(-x)
    expected = torch.autograd.grad(y.square().sum(), [x, *plain.parameters()])
    actual = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    # The outer call's layers receive the error at its logits, the inner call's that at its own: both are that of y.
    same(list(actual), list(expected))


def test_a_layer_of_two_models():
    torch.manual_seed(0)
    shared, heads = Linear(6, 8, rule="dfa"), [Linear(8, CLASSES, rule="dfa") for _ in range(2)]
    models = [connect_direct_feedback(nn.Sequential(shared, nn.Tanh(), head), CLASSES).double() for head in heads]
    x = batch(linears)
    for model, head in zip(models, heads, strict=True):
        alone = nn.Sequential(copy.deepcopy(shared), nn.Tanh(), copy.deepcopy(head))
        for layer in (alone[0], alone[2]):
            layer.direct = None
        same(once(model, x), once(connect_direct_feedback(alone), x))
    # Inside a larger connected model, the error comes from the larger one's logits.
    outer = connect_direct_feedback(nn.Sequential(models[0], nn.Tanh(), Linear(3, 5, rule="dfa")).double(), 5)
    assert shared.feedback.shape == (5, 6)
    e = torch.randn(4, 5, dtype=torch.float64)
    x.requires_grad_()
    assert_close(torch.autograd.grad(outer(x), x, e)[0], e @ shared.feedback)


def test_a_new_head_draws_feedback_again():
    model, x = build(linears), batch(linears)
    model[-1] = Linear(8, 7, rule="dfa").double()
    with pytest.raises(InputError, match=r"num_classes: .* 3 classes, .* shape \[4, 7\]; call .*num_classes=7\)"):
        connect_direct_feedback(model, CLASSES)(x.requires_grad_())
    connect_direct_feedback(model, 7)
    assert all(layer.feedback.shape[0] == 7 for layer in model if isinstance(layer, Linear))
    fresh = nn.Sequential(*(copy.deepcopy(module) for module in model))
    for layer in fresh:
        layer.direct = None
    same(once(model, x), once(connect_direct_feedback(fresh), x))
    assert len(model._forward_hooks) == len(fresh._forward_hooks), "the first connection is gone"
    kept = [layer.feedback.clone() for layer in model if isinstance(layer, Linear)]
    connect_direct_feedback(model, 7)
    assert all(
        torch.equal(a, m.feedback) for a, m in zip(kept, [m for m in model if isinstance(m, Linear)], strict=True)
    )


def test_convert_twice_connects_once():
    model = convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES)), "dfa", seed=0)
    again = convert(convert(model, "usf"), "dfa", seed=0).double()
    same(once(again, batch(linears)), once(model.double(), batch(linears)))


# Gradient checkpoints

VARIANTS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


class Segmented(nn.Sequential):
    """Checkpoints the layers between two numbers."""

    first, last, reentrant = 0, 0, True

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self):
            if i == self.first:
                x = checkpoint(self.segment, x, use_reentrant=self.reentrant)
            elif not self.first < i < self.last:
                x = layer(x)
        return x

    def segment(self, x: Tensor) -> Tensor:
        for layer in self[self.first : self.last]:
            x = layer(x)
        return x


@VARIANTS
@pytest.mark.parametrize("make", [linears, images])
@pytest.mark.parametrize(("first", "last"), [(0, 2), (0, 3), (2, 5), (4, 99), (0, 99)], ids=str)
def test_a_segment(make, first, last, reentrant):
    plain, model, x = build(make), build(make, Segmented), batch(make)
    model.first, model.last, model.reentrant = first, min(last, len(plain)), reentrant
    expected = gradients(plain, x)
    for _ in range(2):
        same(gradients(model, x), expected)


@VARIANTS
@pytest.mark.parametrize("segments", [2, 3])
def test_a_sequence(segments, reentrant):
    class Sequence(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint_sequential(self.layers, segments, x, use_reentrant=reentrant)

    x = batch(images)
    same(gradients(build(images, Sequence), x), gradients(build(images), x))


@pytest.mark.parametrize("outer", [True, False], ids=["outer-reentrant", "outer-non-reentrant"])
@pytest.mark.parametrize("inner", [True, False], ids=["inner-reentrant", "inner-non-reentrant"])
def test_nested(inner, outer):
    class Nested(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            def middle(v: Tensor) -> Tensor:
                return self[3](self[2](v))

            def segment(v: Tensor) -> Tensor:
                v = checkpoint(middle, self[1](self[0](v)), use_reentrant=inner)
                return self[5](self[4](v))

            return self[6](checkpoint(segment, x, use_reentrant=outer))

    x = batch(linears)
    same(gradients(build(linears, Nested), x), gradients(build(linears), x))


@VARIANTS
def test_the_whole_model_and_two_passes_in_flight(reentrant):
    plain, model = build(linears), build(linears)
    xs = [batch(linears, seed).requires_grad_() for seed in (1, 2)]
    own = [x.detach().clone().requires_grad_() for x in xs]
    losses = (
        [plain(x).square().sum() for x in xs],
        [checkpoint(model, x, use_reentrant=reentrant).square().sum() for x in own],
    )
    for pair in losses:
        for loss in reversed(pair):
            loss.backward()
    same([x.grad for x in own], [x.grad for x in xs])
    same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


@VARIANTS
def test_a_segment_whose_input_needs_no_gradient(reentrant):
    plain, model, x = build(linears), build(linears, Segmented), batch(linears)
    # As torch.nn's in the re-entrant variant, a segment below which nothing learns gets no gradients itself.
    model.first, model.last, model.reentrant = 2, 5, reentrant
    for net in (plain, model):
        net(x).square().sum().backward()
    same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


@VARIANTS
def test_another_loss_brings_no_error_from_the_logits(reentrant):
    """The features of a segment have a loss of their own; the graph is run backward for each loss."""

    class Two(Segmented):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = features = checkpoint(self.segment, x, use_reentrant=self.reentrant) if self.last else self.segment(x)
            for layer in self[4:]:
                x = layer(x)
            return x, features

        def segment(self, x: Tensor) -> Tensor:
            for layer in self[:4]:
                x = layer(x)
            return x

    plain, model, x = build(linears, Two), build(linears, Two), batch(linears)
    model.last, model.reentrant = 4, reentrant
    grads = []
    for net in (plain, model):
        own = x.clone().requires_grad_()
        logits, features = net(own)
        logits.square().sum().backward(retain_graph=True)
        features.sum().backward(retain_graph=True)
        logits.sum().backward()
        grads.append([own.grad, *(p.grad for p in net.parameters())])
    same(*reversed(grads))
