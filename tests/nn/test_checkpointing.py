"""Gradient checkpointing against the same model without it: outputs, gradients and the state after, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import bionas_fast as bf
from bionas_fast.nn import HebbianConv2d, HebbianLinear, PredictiveConv2d, connect_direct_feedback
from bionas_fast.nn.batch_norm import SyncedBatchNorm2d
from bionas_fast.ops.hebbian import RULES
from helpers.tolerances import assert_close

VARIANTS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
IMAGES, ROWS = (2, 3, 6, 6), (4, 6)


class OneProcess:
    """Sums over the only process."""

    world_size = 1

    def sum_in_place(self, tensor: Tensor) -> None:
        pass


def synced(momentum: float | None = 0.1) -> nn.Module:
    return SyncedBatchNorm2d.of(nn.BatchNorm2d(3, momentum=momentum), OneProcess())


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{rule: (partial(HebbianConv2d, 3, 3, 3, padding=1, rate=0.1, rule=rule), IMAGES) for rule in RULES},
    "hard_wta-2": (partial(HebbianConv2d, 3, 3, 3, padding=1, rate=0.1, rule="hard_wta", k=2), IMAGES),
    "mixed": (partial(HebbianConv2d, 3, 3, 3, padding=1, rate=0.1, mode="mixed"), IMAGES),
    "adaptive-every-2": (partial(HebbianLinear, 6, 6, rate=0.1, adaptive=True, norm=3.0, every=2), ROWS),
    "linear": (partial(HebbianLinear, 6, 6, rate=0.1), ROWS),
    "predictive": (partial(PredictiveConv2d, 3, 3, 3, 1, 1), IMAGES),
    "predictive-norms": (
        partial(PredictiveConv2d, 3, 3, 3, 1, 1, input_norm=True, output_norm=True, credit="local"),
        IMAGES,
    ),
    "predictive-guarded": (partial(PredictiveConv2d, 3, 3, 3, 1, 1, step_size=0.1), IMAGES),
    "batch-norm": (synced, IMAGES),
    "batch-norm-cumulative": (partial(synced, None), IMAGES),
    "batch-norm-alone": (partial(SyncedBatchNorm2d, 3), IMAGES),
    "brsf": (partial(bf.nn.Conv2d, 3, 3, 3, padding=1, rule="brsf"), IMAGES),
    "brsf-linear": (partial(bf.nn.Linear, 6, 6, rule="brsf"), ROWS),
    "brsf-transposed": (partial(bf.nn.ConvTranspose2d, 3, 3, 3, padding=1, rule="brsf"), IMAGES),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    return layer, copy.deepcopy(layer), shape


def inputs(shape: tuple[int, ...], count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count)]


def same_state(plain: nn.Module, checkpointed: nn.Module) -> None:
    state = checkpointed.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, state[name]), name


def same_gradients(plain: nn.Module, checkpointed: nn.Module) -> None:
    # A leaf used several times adds its gradients in another order.
    for own, theirs in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert (own.grad is None) == (theirs.grad is None)
        if own.grad is not None:
            assert_close(theirs.grad, own.grad)


def weigh(y: Tensor) -> Tensor:
    return (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum()


@VARIANTS
@pytest.mark.parametrize("uses", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_each_use_checkpointed(name, uses, reentrant):
    plain, checkpointed, shape = pair(name)
    for x in inputs(shape, 2):
        own = x.detach().clone().requires_grad_()
        y, z = x, own
        for _ in range(uses):
            y = plain(y).tanh()
            z = checkpoint(lambda v: checkpointed(v).tanh(), z, use_reentrant=reentrant)
        assert torch.equal(y, z)
        weigh(y).backward(), weigh(z).backward()
        assert torch.equal(x.grad, own.grad)
        same_state(plain, checkpointed)
        same_gradients(plain, checkpointed)


@VARIANTS
@pytest.mark.parametrize("name", LAYERS)
def test_several_passes_in_flight_and_evaluation_in_between(name, reentrant):
    plain, checkpointed, shape = pair(name)
    run = partial(checkpoint, use_reentrant=reentrant)
    batches, copies = inputs(shape, 3), inputs(shape, 3)
    results = []
    for layer, xs, call in ((plain, batches, lambda f, x: f(x)), (checkpointed, copies, run)):
        losses = []
        for i, x in enumerate(xs):
            layer.train(i != 1)
            losses.append(weigh(call(layer, x)))
        layer.train()
        # Back through the first and the last pass of training, in either order, and once more.
        losses[2].backward(retain_graph=True)
        losses[0].backward()
        losses[2].backward()
        results.append(losses)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for x, own in zip(batches, copies, strict=True):
        assert (x.grad is None) == (own.grad is None)
        assert x.grad is None or torch.equal(x.grad, own.grad)
    same_state(plain, checkpointed)


@pytest.mark.parametrize("outer", [True, False], ids=["outer-reentrant", "outer-non-reentrant"])
@pytest.mark.parametrize("inner", [True, False], ids=["inner-reentrant", "inner-non-reentrant"])
@pytest.mark.parametrize("name", ["softhebb", "predictive-norms", "brsf-linear", "batch-norm"])
def test_nested(name, inner, outer):
    plain, checkpointed, shape = pair(name)
    (x,), (own,) = inputs(shape), inputs(shape)

    def segment(v: Tensor) -> Tensor:
        v = checkpointed(v).tanh()
        v = checkpoint(lambda w: checkpointed(w).tanh(), v, use_reentrant=inner)
        return checkpointed(v).tanh()

    weigh(plain(plain(plain(x).tanh()).tanh()).tanh()).backward()
    weigh(checkpoint(segment, own, use_reentrant=outer)).backward()
    assert torch.equal(x.grad, own.grad)
    same_state(plain, checkpointed)
    same_gradients(plain, checkpointed)


@VARIANTS
@pytest.mark.parametrize("preserve", [True, False], ids=["preserved-rng", "free-rng"])
def test_a_sequence_with_dropout(preserve, reentrant):
    torch.manual_seed(0)
    dropout = nn.Dropout(0.5 if preserve else 0.0)
    layers = [HebbianLinear(6, 6, rate=0.1), dropout, bf.nn.Linear(6, 6, rule="brsf"), HebbianLinear(6, 6, rate=0.1)]
    plain = nn.Sequential(*layers).double()
    checkpointed = copy.deepcopy(plain)
    (x,), (own,) = inputs(ROWS), inputs(ROWS)
    torch.manual_seed(3)
    weigh(plain(x)).backward()
    torch.manual_seed(3)
    y = checkpoint_sequential(checkpointed, 2, own, use_reentrant=reentrant, preserve_rng_state=preserve)
    weigh(y).backward()
    assert torch.equal(x.grad, own.grad)
    same_state(plain, checkpointed)


@VARIANTS
def test_an_exception_in_a_segment(reentrant):
    plain, checkpointed, shape = pair("softhebb")
    x, y = inputs(shape, 2)
    own, again = inputs(shape, 2)

    def fails(v: Tensor) -> Tensor:
        checkpointed(v)
        raise ValueError("interrupted")

    plain(x)
    with pytest.raises(ValueError, match="interrupted"):
        checkpoint(fails, own, use_reentrant=reentrant)
    weigh(plain(y)).backward()
    weigh(checkpoint(checkpointed, again, use_reentrant=reentrant)).backward()
    assert torch.equal(y.grad, again.grad)
    same_state(plain, checkpointed)


@VARIANTS
@pytest.mark.parametrize("name", ["fa", "brsf", "dfa", "predictive"])
def test_the_path_of_the_error_is_that_of_the_first_pass(name, reentrant):
    """The true gradient of a pass stays it if the backward pass runs outside the block, and vice versa."""
    torch.manual_seed(0)
    if name == "predictive":
        net: nn.Module = PredictiveConv2d(3, 3, 3, 1, 1, credit="local").double()
    else:
        net = nn.Sequential(bf.nn.Linear(6, 6, rule=name), nn.Tanh(), bf.nn.Linear(6, 3, rule=name)).double()
        connect_direct_feedback(net, 3)
    shape = IMAGES if name == "predictive" else ROWS

    class Segment(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(net, x, use_reentrant=reentrant)

    def gradient(forward: nn.Module, true: bool) -> Tensor:
        (x,) = inputs(shape)
        if true:
            with bf.true_gradients(net):
                y = forward(x)
            weigh(y).backward()
        else:
            y = forward(x)
            with bf.true_gradients(net):
                weigh(y).backward()
        return x.grad

    start = copy.deepcopy(net.state_dict())
    for true in (True, False):
        net.load_state_dict(start)
        expected = gradient(net, true)
        net.load_state_dict(start)
        assert torch.equal(gradient(Segment(), true), expected)


class Recomputed(torch.autograd.Function):
    """A checkpoint as other libraries write it."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.run(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


@pytest.mark.parametrize("name", ["softhebb", "predictive-norms", "brsf"])
def test_a_checkpoint_of_another_library(name):
    plain, checkpointed, shape = pair(name)
    (x,), (own,) = inputs(shape), inputs(shape)
    weigh(plain(x)).backward()
    weigh(Recomputed.apply(checkpointed, own)).backward()
    assert torch.equal(x.grad, own.grad)
    same_state(plain, checkpointed)


def test_a_checkpoint_in_hooks_of_a_module():
    from torch.distributed._composable import checkpoint as composable

    plain, checkpointed, shape = pair("softhebb")
    composable(checkpointed)
    (x,), (own,) = inputs(shape), inputs(shape)
    weigh(plain(x)).backward()
    weigh(checkpointed(own)).backward()
    assert torch.equal(x.grad, own.grad)
    same_state(plain, checkpointed)


@VARIANTS
def test_cells_of_the_stacked_supernet(reentrant):
    def supernet() -> nn.Module:
        return bf.build_supernet(space="bionas", channels=2, cells=2, num_classes=3, in_channels=3, seed=0)

    plain, checkpointed = supernet(), supernet()
    edges = [module for module in checkpointed.modules() if type(module).__name__ == "StackedEdges"]
    assert edges
    for module in edges:

        def repeated(x, weights, into, forward=module.forward):
            # torch detaches the tensors of a re-entrant segment that are arguments, not those in lists.
            def run(x, terms, *into):
                return forward(x, weights._replace(terms=terms), into)

            return checkpoint(run, x, weights.terms, *into, use_reentrant=reentrant)

        module.forward = repeated
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for net in (plain, checkpointed):
        for _ in range(2):
            weigh(net(x.clone().requires_grad_())).backward()
    same_state(plain, checkpointed)
    same_gradients(plain, checkpointed)


def test_nothing_is_kept_without_a_checkpoint_or_after_its_graph():
    import gc
    import weakref

    layer = HebbianLinear(6, 6, rate=0.1)
    y = checkpoint(layer, torch.randn(ROWS, requires_grad=True), use_reentrant=False)
    node = weakref.ref(layer)
    y.sum().backward()
    del y, layer
    gc.collect()
    assert node() is None
