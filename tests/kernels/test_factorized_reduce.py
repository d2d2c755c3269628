"""Factorized reductions of a state: the specification against modules and autograd, the compiled kernels against it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bionas_fast import native
from bionas_fast.kernels.factorized_reduce import reference
from bionas_fast.kernels.records import Prologue, ReductionWeights
from bionas_fast.space.operations import FactorizedReduce
from helpers.native import needs_native

OPCHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize("size", [(4, 6), (5, 5), (5, 4), (1, 1)], ids=str)
def test_reference_is_the_modules(size):
    """With B = W, and edges that share a gradient. The loss is Σ a · grad · z + b · z²/2 + d · z."""
    torch.manual_seed(0)
    edges = [1, 0, 1]
    modules = [FactorizedReduce(5, 5, "bp", affine=False).double() for _ in edges]
    for module in modules:
        module.bn = torch.nn.Identity()
    x = torch.randn(2, *size, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for module in modules])
    grads = torch.randn(2, *expected.shape[1:], dtype=torch.float64)
    a, b, d = torch.randn(3, 3, 5, dtype=torch.float64)
    wide = [row[:, None, None, None] for row in (a, b, d)]
    loss = wide[0] * expected * grads[edges] + wide[1] * expected.square() / 2 + wide[2] * expected
    weights = [getattr(module, name).weight for name in ("conv1", "conv2") for module in modules]
    down, *each = torch.autograd.grad(loss.sum(), (x, *weights))
    parts = [torch.stack(three)[..., 0, 0] for three in (weights[:3], weights[3:], each[:3], each[3:])]
    with torch.no_grad():
        matrices = ReductionWeights(*parts[:2])
        z, sums = reference.forward(x, matrices)
        torch.testing.assert_close(z, expected)
        torch.testing.assert_close([*sums], [expected.sum(dim=(1, 2, 3)), expected.square().sum(dim=(1, 2, 3))])
        given = (Prologue([grads[e] for e in edges], z, a, b, d), x, matrices, matrices)
        error, made = reference.backward(*given, True)
        for ours, theirs in zip((error, *made), (down, *parts[2:]), strict=True):
            torch.testing.assert_close(ours, theirs)
        error, none = reference.backward(*given, False)
    torch.testing.assert_close(error, down)
    assert [grad.numel() for grad in none] == [0, 0]


def whole_numbers(count, n, h, w, own, channels, edges, seed):
    """Arguments so small that float32 is exact, and the weights; what pads the maps is not zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(most, *shape):
        return torch.randint(-most, most + 1, shape, generator=generator).double()

    weights, feedback = (
        ReductionWeights(draw(2, count, own - own // 2, own), draw(2, count, own // 2, own)) for _ in range(2)
    )
    each = draw(3, max(edges) + 1, n, -(-h // 2), -(-w // 2), channels)
    grads = [each[e] for e in edges]
    a, b, d = draw(2, count, channels), draw(1, count, channels), draw(2, count, channels)
    return draw(3, n, h, w, channels), weights, feedback, grads, (a, b, d)


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    edges=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    n=st.integers(1, 3),
    h=st.integers(1, 13),
    w=st.integers(1, 70),
    own=st.integers(1, 64),
    more=st.integers(0, 1),
    weights_wanted=st.booleans(),
    isa=st.sampled_from(native.isas() or ("none",)),
    seed=st.integers(0, 2**31),
)
def test_compiled_kernels_on_random_shapes(edges, n, h, w, own, more, weights_wanted, isa, seed):
    channels = 16 * (-(-own // 16) + more)
    x, weights, feedback, grads, affine = whole_numbers(len(edges), n, h, w, own, channels, edges, seed)
    x_own, *affine_own = (tensor[..., :own] for tensor in (x, *affine))
    z, sums = reference.forward(x_own, weights)
    prologue = Prologue([grad[..., :own] for grad in grads], z, *affine_own)
    error, made = reference.backward(prologue, x_own, weights, feedback, weights_wanted)
    expected = [*(F.pad(tensor, (0, channels - own)) for tensor in (z, *sums, error)), *made]

    ops = torch.ops.bionas_fast_native
    x, *affine = (tensor.float() for tensor in (x, *affine))
    weights, feedback, grads = ([tensor.float() for tensor in group] for group in (weights, feedback, grads))
    with native.use_isa(isa):
        z, *sums = ops.factorized_reduce(x, weights)
        back = ops.factorized_reduce_backward(grads, [z, *affine], x, weights, feedback, weights_wanted)
    for i, (ours, theirs) in enumerate(zip((z, *sums, *back), expected, strict=True)):
        assert ours.shape == theirs.shape, i
        assert torch.equal(ours.double(), theirs), i


def operator_arguments():
    """The arguments of the forward and the backward operator, by name."""
    x, weights, feedback, grads, affine = whole_numbers(3, 2, 5, 6, 10, 16, [0, 1, 0], 0)
    forward = {"x": x.float(), "weights": [weight.float() for weight in weights]}
    z = torch.ops.bionas_fast_native.factorized_reduce(**forward)[0]
    back = {"grads": [grad.float() for grad in grads], "prologue": [z, *(row.float() for row in affine)]} | forward
    return forward, back | {"feedback": [weight.float() for weight in feedback], "weight_grads": True}


def with_changes(given: dict, changed: dict) -> dict:
    """Arguments, some of them changed; of a list only the places that are named."""
    return given | {
        name: [value.get(i, old) for i, old in enumerate(given[name])] if isinstance(value, dict) else value
        for name, value in changed.items()
    }


@needs_native
def test_operators_pass_opcheck():
    ops = torch.ops.bionas_fast_native
    forward, backward = operator_arguments()
    torch.library.opcheck(ops.factorized_reduce.default, tuple(forward.values()), test_utils=OPCHECKS)
    for weights in (True, False):
        given = backward | {"weight_grads": weights}
        torch.library.opcheck(ops.factorized_reduce_backward.default, tuple(given.values()), test_utils=OPCHECKS)


@needs_native
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(2, 5, 6, 10)}, "x: expected a multiple of 16 channels"),
        ({"x": torch.zeros(2, 5, 96)}, "x: expected"),
        ({"x": torch.zeros(2, 5, 6, 16).double()}, "x: expected Float"),
        ({"x": torch.zeros(2, 5, 16, 6).transpose(2, 3)}, "x: expected a contiguous"),
        ({"weights": {0: torch.zeros(5, 10)}}, "first, second: expected a matrix for each"),
        ({"weights": {0: torch.zeros(3, 6, 10)}}, "first, second: expected the two halves"),
        ({"weights": {1: torch.zeros(2, 5, 10)}}, "first, second: expected the two halves"),
        ({"weights": [torch.zeros(3, 9, 18), torch.zeros(3, 9, 18)]}, "at most as many channels"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    ops = torch.ops.bionas_fast_native
    forward, backward = operator_arguments()
    with pytest.raises(RuntimeError, match=message):
        ops.factorized_reduce(**with_changes(forward, changed))
    with pytest.raises(RuntimeError, match=message):
        ops.factorized_reduce_backward(**with_changes(backward, changed))


@needs_native
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": [torch.zeros(3, 5, 10)]}, "weights: expected first and second"),
        ({"grads": [torch.zeros(2, 3, 3, 16)] * 2}, "grads: expected one for each"),
        ({"prologue": [torch.zeros(3, 2, 3, 3, 16)]}, "prologue: expected z, a, b, d"),
        ({"prologue": {0: torch.zeros(2, 2, 3, 3, 16)}}, "z: expected"),
        ({"prologue": {2: torch.zeros(2, 16)}}, r"a, b, d: expected \["),
        ({"prologue": {3: torch.zeros(3, 16).double()}}, "a, b, d: expected Float"),
        ({"grads": {1: torch.zeros(2, 3, 2, 16)}}, "grads: expected"),
        ({"feedback": [torch.zeros(3, 4, 8), torch.zeros(3, 4, 8)]}, "feedback: expected"),
    ],
)
def test_bad_arguments_of_the_backward_pass_are_refused(changed, message):
    _, backward = operator_arguments()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bionas_fast_native.factorized_reduce_backward(**with_changes(backward, changed))


@needs_native
@pytest.mark.parametrize("shape", [(0, 4, 4, 16), (2, 0, 3, 16), (2, 3, 0, 16)], ids=str)
def test_no_positions(shape):
    forward, backward = operator_arguments()
    x, size = torch.zeros(shape), (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), 16)
    z, *sums = torch.ops.bionas_fast_native.factorized_reduce(**forward | {"x": x})
    assert z.shape == (3, *size)
    changed = {"x": x, "prologue": {0: z}, "grads": [torch.zeros(size)] * 3}
    error, *grads = torch.ops.bionas_fast_native.factorized_reduce_backward(**with_changes(backward, changed))
    assert error.shape == shape
    assert not any(tensor.any() for tensor in (*sums, *grads))


@needs_native
def test_not_a_number_stays_one():
    forward, _ = operator_arguments()
    forward["x"][0, 2, 4, 3] = torch.nan
    forward["x"][1, 3, 1, 5] = torch.nan
    z = torch.ops.bionas_fast_native.factorized_reduce(**forward)[0]
    theirs = reference.forward(forward["x"][..., :10], ReductionWeights(*forward["weights"]))[0]
    assert theirs.isnan().any()
    assert z[..., :10][theirs.isnan()].isnan().all()
