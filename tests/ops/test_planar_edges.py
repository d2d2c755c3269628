"""The channels-first kernels of discrete cells, against torch in float64."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast import native
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.ops.planar_edges import PlanarStage, planar_edges, planar_identity, planar_pool
from helpers.rounded_factors import RoundedFactors
from helpers.tolerances import EDGES_FLOAT32, NARROW_EDGES, NARROW_PLANAR, SAME_BITS, SUM_FLOAT32

pytestmark = pytest.mark.skipif(not native.load(), reason="the kernels are not compiled here")

# Channels of the input and of the output, size, (kernel, dilation) of the stages of each edge. Sizes that are no
# multiple of a vector or of a panel of 64 positions, channels that are no multiple of a block of rows.
CASES = {
    "two edges, odd size": (5, 5, (7, 9), [[(3, 1), (3, 1)], [(5, 2)]]),
    "whole vectors": (18, 18, (16, 16), [[(3, 1), (3, 1)]]),
    "half a vector": (7, 7, (8, 8), [[(5, 1), (5, 1)], [(3, 2)]]),
    "7x7": (6, 6, (16, 5), [[(7, 1), (7, 1)]]),
    "preprocessing": (25, 7, (9, 9), [[(0, 1)]]),
    "a row": (4, 4, (1, 13), [[(3, 3)]]),
    "a channel": (2, 1, (4, 5), [[(3, 1)]]),
}


class RoundedError(torch.autograd.Function):
    """The identity; the error is rounded to bfloat16."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.bfloat16().to(grad.dtype)


def straight_through(x: Tensor) -> Tensor:
    """Round to bfloat16; the error passes as it is."""
    return x + (x.bfloat16().to(x.dtype) - x).detach()


class Case:
    """Arguments in float64, and what torch computes of them."""

    def __init__(
        self, name: str, training: bool, images: int = 3, maps: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        channels, outputs, size, self.plan = CASES[name]
        generator = torch.Generator().manual_seed(seed)
        self.maps = maps

        def draw(*shape: int) -> Tensor:
            # Numbers that the kernels' types hold, so that both precisions see the same.
            return torch.randn(*shape, generator=generator).to(maps).double()

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
                self.weights.append((draw(outputs, width, 1, 1) / 3).float().double().requires_grad_())
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
        """Outputs and running statistics; what the ReLUs of second stages see becomes :attr:`seen`."""
        weights, affine, running = iter(self.weights), iter(self.affine), [t.clone() for t in self.running]
        statistics, out = iter(running), []
        self.seen, x = [], self.x
        for stages, base, keep in zip(self.plan, self.into, self.keep, strict=True):
            if self.maps == torch.bfloat16:
                x = RoundedError.apply(x)  # what the later edges have added up to, and this one
            h = x
            for stage, (kernel, dilation) in enumerate(stages):
                if stage:
                    self.seen.append(h.detach())
                h = h.relu()
                if kernel:
                    padding = dilation * (kernel // 2)
                    h = F.conv2d(h, next(weights), None, 1, padding, dilation, groups=h.shape[1])
                h = F.conv2d(h, next(weights))
                mean, var, count = next(statistics), next(statistics), next(statistics)
                h = self.normalised(h, mean, var, next(affine), next(affine), stage + 1 == len(stages))
                count += self.training
            h = h * keep[:, None, None, None]
            out.append(h if base is None else h + base)
        return out, running

    def normalised(self, h: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, last: bool) -> Tensor:
        """Maps in bfloat16 are rounded, as is the error of a map; moments and sums of errors are those before that."""
        if self.maps != torch.bfloat16:
            return F.batch_norm(h, mean, var, gamma, beta, self.training, 0.1, 1e-5)
        h, exact = straight_through(h), h
        if self.training:
            F.batch_norm(exact.detach(), mean, var, training=True, momentum=0.1)
            mean = h.mean(dim=(0, 2, 3))
            var = (h - mean[:, None, None]).square().mean(dim=(0, 2, 3))
            of_exact = torch.var_mean(exact.detach(), dim=(0, 2, 3), correction=0)
            var, mean = (own + (value - own).detach() for own, value in zip((var, mean), of_exact, strict=True))
        scale = gamma / (var + 1e-5).sqrt()
        by_map = h * scale.detach()[:, None, None]
        by_scale = h.detach() * scale[:, None, None] - by_map.detach() + (beta - mean * scale)[:, None, None]
        return (by_map if last else RoundedError.apply(by_map)) + by_scale

    def found(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs, running statistics and leaves: float32, but the maps."""

        def single(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        x, into = single(self.x, self.maps), [None if base is None else single(base, self.maps) for base in self.into]
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


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_maps_in_bfloat16(isa, name, training):
    """Maps, results and errors are rounded where the expected values are, and nothing else."""
    for seed in range(100):
        case = Case(name, training, maps=torch.bfloat16, seed=seed)
        with RoundedFactors() if isa == "avx512_bf16" else nullcontext():
            out, running = case.expected()
            grads = torch.autograd.grad(out, case.wanted, case.grads)
        if all((seen.abs() > 1e-4).all() for seen in case.seen):
            break  # no sign at a ReLU is a matter of the order of a sum
    own, own_running, leaves = case.found()
    own_grads = torch.autograd.grad(own, leaves, [grad.bfloat16() for grad in case.grads])
    assert {tensor.dtype for tensor in own} == {torch.bfloat16}
    assert [grad.dtype for grad in own_grads] == [leaf.dtype for leaf in leaves]
    for actual, expected in zip((*own, *own_grads), (*(o.bfloat16() for o in out), *grads), strict=True):
        bound = NARROW_PLANAR if training else NARROW_EDGES
        assert ((actual - expected).norm() / expected.norm()).item() < bound
    for actual, expected in zip(own_running, running, strict=True):
        assert error(actual, expected) < SUM_FLOAT32


def test_maps_in_bfloat16_are_exact_on_small_whole_numbers(isa):
    """No rounding changes them, so that a term that is missing, or wrong, does not hide in a tolerance."""
    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int, zeros: int = 0) -> Tensor:
        drawn = torch.randint(-1, 2, shape, generator=generator)
        return (drawn * (torch.randint(0, 1 + zeros, shape, generator=generator) == 0)).double()

    x, plan = whole(3, 9, 7, 19).requires_grad_(), [[(3, 1), (3, 2)], [(5, 1)]]
    weights = [whole(9, 1, k, k, zeros=3) if k else whole(9, 9, 1, 1, zeros=3) for k in (3, 0, 3, 0, 5, 0)]
    affine = [whole(9) for _ in range(6)]
    into, grads, keep = [whole(3, 9, 7, 19), None], [whole(3, 9, 7, 19) for _ in range(2)], whole(2, 3)

    def run(dtype: torch.dtype, maps: torch.dtype, kernels: bool) -> list[Tensor]:
        own = x.detach().to(maps).requires_grad_()
        w, a = ([t.to(dtype).requires_grad_() for t in each] for each in (weights, affine))
        still = torch.zeros(9, dtype=dtype), torch.ones(9, dtype=dtype), torch.tensor(0)  # of evaluation: no change
        w_, a_ = iter(w), iter(a)
        if kernels:
            stages = [
                [
                    PlanarStage(k, d, (next(w_), next(w_)), (Feedback(),) * 2, (next(a_), next(a_)), still, 0.0, 0.1)
                    for k, d in chain
                ]
                for chain in plan
            ]
            base = [None if t is None else t.to(maps) for t in into]
            out = planar_edges(own, stages, base, keep.to(dtype), False)
        else:
            out = []
            for chain, base, factors in zip(plan, into, keep, strict=True):
                h = own
                for k, d in chain:
                    h = F.conv2d(h.relu(), next(w_), None, 1, d * (k // 2), d, groups=9)
                    h = F.conv2d(h, next(w_)) * next(a_)[:, None, None] + next(a_)[:, None, None]
                h = h * factors.to(dtype)[:, None, None, None]
                out.append(h if base is None else h + base)
        return [*out, *torch.autograd.grad(out, [own, *w, *a], [grad.to(maps) for grad in grads])]

    expected = run(torch.float64, torch.float64, False)
    maps = [expected[0], expected[1], expected[2]]
    assert max(t.abs().max() for t in maps) < 2**8 and all(t.any() for t in expected)
    for actual, right in zip(run(torch.float32, torch.bfloat16, True), expected, strict=True):
        torch.testing.assert_close(actual.double(), right, **SAME_BITS)


def test_second_derivatives_in_bfloat16():
    """They are computed in float32, from maps that are not rounded."""
    case = Case("two edges, odd size", True, maps=torch.bfloat16)
    own, _, leaves = case.found()
    grads = [grad.bfloat16() for grad in case.grads]
    (first,) = torch.autograd.grad(own, leaves[0], grads, create_graph=True)
    found = torch.autograd.grad(first.float().square().sum(), leaves[1])[0]
    case.maps = torch.float64
    out, _ = case.expected()
    (first,) = torch.autograd.grad(out, case.x, case.grads, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), case.weights[0])
    assert ((found - expected).norm() / expected.norm()).item() < NARROW_PLANAR


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pool_equals_torch_with_ties(isa, size, stride, dtype):
    # Few different values: among equal maxima the first receives the gradient.
    x = torch.randint(-2, 3, (2, 3, *size), generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    expected, found = F.max_pool2d(x, 3, stride, 1), planar_pool(x, stride)
    assert torch.equal(found, expected)
    grad = torch.randint(-9, 9, expected.shape).to(dtype)  # whose sums are exact
    ours, theirs = (torch.autograd.grad(out, x, grad)[0] for out in (found, expected))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pool_passes_nan_on(isa, dtype):
    x = torch.randn(1, 2, 6, 6).to(dtype)
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
    narrow = x.detach().bfloat16().requires_grad_()
    out = planar_identity(narrow, ones, Feedback("stored_sign", factors))
    (grad,) = torch.autograd.grad(out, narrow, torch.ones_like(out))
    assert torch.equal(grad, factors.view(3, 1, 1).expand_as(x).bfloat16())


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
        ({"x": torch.randn(2, 6, 5, 4).double()}, "x: expected Float on the CPU"),
        ({"into": [torch.randn(2, 6, 5, 4).bfloat16()]}, "into: expected Float on the CPU"),
        ({"x": torch.randn(2, 6, 5, 4).bfloat16(), "into": [torch.randn(2, 6, 5, 4)]}, "into: expected BFloat16"),
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
