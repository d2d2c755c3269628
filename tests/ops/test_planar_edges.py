"""The channels-first kernels of discrete cells, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast import native
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.ops.planar_edges import PlanarStage, planar_edges, planar_identity, planar_pool
from helpers.tolerances import EDGES_FLOAT32, SAME_BITS

pytestmark = pytest.mark.skipif(not native.load(), reason="the kernels are not compiled here")

# Channels of the input and of the output, size, (kernel, dilation) of the stages of each edge. Sizes that are no
# multiple of a vector or of a panel of 64 positions, channels that are no multiple of a block of rows.
CASES = {
    "two edges, odd size": (5, 5, (7, 9), [[(3, 1), (3, 1)], [(5, 2)]]),
    "whole vectors": (18, 18, (16, 16), [[(3, 1), (3, 1)]]),
    "half a vector": (7, 7, (8, 8), [[(5, 1), (5, 1)], [(3, 2)]]),
    "7x7": (6, 6, (16, 5), [[(7, 1), (7, 1)]]),
    "preprocessing": (25, 6, (9, 9), [[(0, 1)]]),
    "a row": (4, 4, (1, 13), [[(3, 3)]]),
}


class Case:
    """Arguments in float64, and what torch computes of them."""

    def __init__(self, name: str, training: bool, images: int = 3) -> None:
        channels, outputs, size, self.plan = CASES[name]
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            # Numbers that float32 holds, so that both precisions see the same.
            return torch.randn(*shape, generator=generator).double()

        self.training = training
        self.x = draw(images, channels, *size).requires_grad_()
        self.weights: list[Tensor] = []
        self.affine: list[Tensor] = []
        self.running: list[Tensor] = []
        for stages in self.plan:
            width = channels
            for kernel, _ in stages:
                if kernel:
                    self.weights.append((draw(width, 1, kernel, kernel) / kernel).float().double().requires_grad_())
                self.weights.append(draw(outputs, width, 1, 1).requires_grad_())
                self.affine += [draw(outputs).requires_grad_(), draw(outputs).requires_grad_()]
                self.running += [draw(outputs), draw(outputs).square() + 0.5, torch.tensor(3)]
                width = outputs
        edges = len(self.plan)
        self.into = [draw(images, outputs, *size).requires_grad_() if edge % 2 == 0 else None for edge in range(edges)]
        self.keep = draw(edges, images)
        self.grads = [draw(images, outputs, *size) for _ in range(edges)]

    @property
    def wanted(self) -> list[Tensor]:
        return [self.x, *self.weights, *self.affine, *(base for base in self.into if base is not None)]

    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and running statistics."""
        weights, affine, running = iter(self.weights), iter(self.affine), [t.clone() for t in self.running]
        statistics, out = iter(running), []
        for stages, base, keep in zip(self.plan, self.into, self.keep, strict=True):
            h = self.x
            for kernel, dilation in stages:
                h = h.relu()
                if kernel:
                    padding = dilation * (kernel // 2)
                    h = F.conv2d(h, next(weights), None, 1, padding, dilation, groups=h.shape[1])
                h = F.conv2d(h, next(weights))
                mean, var, count = next(statistics), next(statistics), next(statistics)
                h = F.batch_norm(h, mean, var, next(affine), next(affine), self.training, 0.1, 1e-5)
                count += self.training
            h = h * keep[:, None, None, None]
            out.append(h if base is None else h + base)
        return out, running

    def found(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs, running statistics and leaves in float32."""

        def single(tensor: Tensor) -> Tensor:
            return tensor.detach().float().requires_grad_(tensor.requires_grad)

        x, into = single(self.x), [None if base is None else single(base) for base in self.into]
        weights, affine = [single(w) for w in self.weights], [single(t) for t in self.affine]
        running = [t.float() if t.is_floating_point() else t.clone() for t in self.running]
        w, a, r = iter(weights), iter(affine), iter(running)
        edges = []
        for stages in self.plan:
            own = []
            for kernel, dilation in stages:
                of_stage = tuple(next(w) for _ in range(2 if kernel else 1))
                backprop = (Feedback(),) * len(of_stage)
                statistics = next(r), next(r), next(r)
                own.append(PlanarStage(kernel, dilation, of_stage, backprop, (next(a), next(a)), statistics, 1e-5, 0.1))
            edges.append(own)
        out = planar_edges(x, edges, into, self.keep.float(), self.training)
        return out, running, [x, *weights, *affine, *(base for base in into if base is not None)]


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_edges_equal_torch(isa, name, training):
    case = Case(name, training)
    out, running = case.expected()
    grads = torch.autograd.grad(out, case.wanted, case.grads)
    own, own_running, leaves = case.found()
    own_grads = torch.autograd.grad(own, leaves, [grad.float() for grad in case.grads])
    for actual, expected in zip((*own, *own_grads), (*out, *grads), strict=True):
        assert error(actual, expected) < EDGES_FLOAT32
    for actual, expected in zip(own_running, running, strict=True):
        assert error(actual, expected) < EDGES_FLOAT32
    assert all(own_running[k] == 3 + training for k in range(2, len(running), 3))


def test_second_derivatives_equal_torch():
    case = Case("two edges, odd size", True)
    out, _ = case.expected()
    own, _, leaves = case.found()

    def penalty(out: list[Tensor], x: Tensor, params: list[Tensor]) -> tuple[Tensor, ...]:
        grads = [grad.to(x.dtype) for grad in case.grads]
        (first,) = torch.autograd.grad(out, x, grads, create_graph=True)
        return torch.autograd.grad(first.square().sum(), params)

    count = len(case.weights)
    expected = penalty(out, case.x, case.weights)
    for actual, right in zip(penalty(own, leaves[0], leaves[1 : 1 + count]), expected, strict=True):
        assert error(actual, right) < 10 * EDGES_FLOAT32  # two derivatives


def test_slices_and_gradients_of_stride_0_are_accepted():
    case = Case("two edges, odd size", True)
    out, _ = case.expected()
    (expected,) = torch.autograd.grad(sum(own.sum() for own in out), case.into[0])
    wide = torch.zeros(3, 9, 7, 9)
    wide[:, 2:7] = case.x.detach()
    case.x = wide[:, 2:7].double().requires_grad_()
    own, _, leaves = case.found()
    (found,) = torch.autograd.grad(sum(o.sum() for o in own), leaves[-1])
    torch.testing.assert_close(found.double(), expected, **SAME_BITS)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 9), (32, 32), (8, 8), (1, 1), (5, 28)], ids=str)
def test_pool_equals_torch_with_ties(isa, size, stride):
    # Few different values: among equal maxima the first receives the gradient.
    x = torch.randint(-2, 3, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float().requires_grad_()
    expected, found = F.max_pool2d(x, 3, stride, 1), planar_pool(x, stride)
    assert torch.equal(found, expected)
    grad = torch.randint(-9, 9, expected.shape).float()  # whose sums are exact
    ours, theirs = (torch.autograd.grad(out, x, grad)[0] for out in (found, expected))
    assert torch.equal(ours, theirs)


def test_pool_passes_nan_on(isa):
    x = torch.randn(1, 2, 6, 6)
    x[0, 0, 2, 3] = torch.nan
    torch.testing.assert_close(planar_pool(x, 1), F.max_pool2d(x, 3, 1, 1), equal_nan=True, **SAME_BITS)


def test_pool_has_a_second_derivative():
    x = torch.randn(1, 2, 5, 6, requires_grad=True)
    grad = torch.randn(1, 2, 5, 6, requires_grad=True)
    (first,) = torch.autograd.grad(planar_pool(x, 1), x, grad, create_graph=True)
    found = torch.autograd.grad(first, grad, torch.ones_like(x))[0]
    (first,) = torch.autograd.grad(F.max_pool2d(x, 3, 1, 1), x, grad, create_graph=True)
    assert torch.equal(found, torch.autograd.grad(first, grad, torch.ones_like(x))[0])


def test_identity_scales_the_error():
    x, ones, factors = torch.randn(2, 3, 4, 4, requires_grad=True), torch.ones(3, 1, 1, 1), torch.rand(3, 1, 1, 1)
    out = planar_identity(x, ones, Feedback("stored_sign", factors))
    assert torch.equal(out, x)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(x))
    assert torch.equal(grad, factors.view(3, 1, 1).expand_as(x))
    assert planar_identity(x, ones, Feedback()) is x


def test_operators_pass_opcheck():
    ops, checks = torch.ops.bionas_fast_native, ("test_schema", "test_faketensor")
    x, chain = torch.randn(2, 6, 5, 4), [torch.randn(6, 1, 3, 3), torch.randn(6, 6, 1, 1)]
    affine, running = [torch.rand(6), torch.rand(6)], [torch.zeros(6), torch.ones(6), torch.tensor(0)]
    plan, few, keep = [1, 3, 1], [0.1], torch.rand(1, 2)
    forward = (x, chain, affine, running, plan, few, few, [None], keep, True)
    torch.library.opcheck(ops.planar_edges.default, forward, test_utils=checks)
    (out,), maps, *moments = ops.planar_edges(*forward)
    backward = ([out], x, maps, moments, chain, chain, affine, plan, few, keep, True, True)
    torch.library.opcheck(ops.planar_edges_backward.default, backward, test_utils=checks)
    torch.library.opcheck(ops.planar_pool.default, (x, 2), test_utils=checks)
    torch.library.opcheck(ops.planar_pool_backward.default, (x, x, 1), test_utils=checks)
    weights = (chain, ["sign", "sign"], [None, None], [None, None], [0.0, 0.0], [0.5, 0.5])
    torch.library.opcheck(ops.feedback_weights.default, weights, test_utils=checks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": [1, 4, 1]}, "kernels: expected 0"),
        ({"plan": [3, 3, 1]}, "stages: expected 1 to 2"),
        ({"x": torch.randn(2, 5, 5, 4)}, "depthwise: expected 45 elements"),
        ({"x": torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last)}, "x: expected contiguous images"),
        ({"running": []}, "running: expected mean"),
        ({"keep": torch.rand(3)}, "keep: expected 2 elements"),
        ({"x": torch.randn(1, 6, 1, 1)}, "x: expected more than one value"),
    ],
)
def test_mismatched_arguments_are_refused(change, message):
    given = {
        "x": torch.randn(2, 6, 5, 4),
        "weights": [torch.randn(6, 1, 3, 3), torch.randn(6, 6, 1, 1)],
        "affine": [torch.rand(6), torch.rand(6)],
        "running": [torch.zeros(6), torch.ones(6), torch.tensor(0)],
        "plan": [1, 3, 1],
        "eps": [0.1],
        "momentum": [0.1],
        "into": [None],
        "keep": torch.rand(1, 2),
        "training": True,
    } | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bionas_fast_native.planar_edges(*given.values())
