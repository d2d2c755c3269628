"""Maps in bfloat16, see ``kernels.maps``: compiled kernels against references that round in the same places."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from bionas_fast.kernels.records import (
    Affine,
    Moments,
    Prologue,
    ReductionWeights,
    SavedEdges,
    SeparablePlan,
    SeparableWeights,
    Stage,
    StageWeights,
    Sums,
    Terms,
)
from bionas_fast.ops.mixed_edges.backends import find
from helpers.native import needs_native
from helpers.rounded_factors import RoundedFactors
from helpers.tolerances import NARROW_EDGES, STAGE_FLOAT32, SUM_FLOAT32

pytestmark = needs_native
reference, kernels = find("reference"), find("native")


class Draws:
    """Seeded numbers: normal ones in float64, and small whole ones, of which bfloat16 and float32 are exact."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def whole(self, most: int, *shape: int) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=self.generator).double()


def floats(record):
    """A record or list of tensors in float32."""
    each = [tensor.float() for tensor in record]
    return type(record)(*each) if hasattr(record, "_fields") else each


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over that of the expected tensor."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 16), (1, 9, 11, 32), (2, 1, 1, 48), (1, 12, 35, 64)], ids=str)
def test_stages_are_exact_on_small_whole_numbers(shape, shared, isa):
    """Also where factors of products are rounded: every instruction set gives the same bits as float64."""
    draws, (n, h, w, c) = Draws(0), shape
    stage = Stage((3, 5, 3), (1, 1, 2), 2 if shared else 1)
    count, taps, size = len(stage.kernels), stage.taps, (n, -(-h // stage.stride), -(-w // stage.stride), c)
    x = draws.whole(1, *shape) if shared else draws.whole(1, count, *shape)
    # One entry of nine, so that the sums stay small.
    weights, feedback = (StageWeights(draws.whole(1, taps * c), draws.whole(4, count, c, c) // 4) for _ in range(2))
    affine = None if shared else Affine(draws.whole(1, count, c), draws.whole(1, count, c))
    grads, z = [draws.whole(1, *size) for _ in range(count)], draws.whole(2, count, *size)
    prologue = Prologue(grads, z, *(draws.whole(1, count, c) for _ in range(3)))

    def run(backend, cast):
        given = (cast([x])[0].bfloat16(), cast(weights))
        before = None if affine is None else cast(affine)
        made = backend.stage_forward(*given, stage, before)
        a, b, d = cast([*prologue[2:]])
        passed = Prologue(cast(prologue.grads), z.bfloat16(), a, b, d)
        return made[0], *made[1], *backend.stage_backward(passed, *given, cast(feedback), stage, before, True)

    expected, actual = run(reference, lambda record: record), run(kernels, floats)
    assert actual[0].dtype == torch.bfloat16
    assert expected[0].float().abs().max() < 2**8  # so that bfloat16 is exact
    for i, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.numel() == theirs.numel(), i
        assert not ours.numel() or torch.equal(ours.double(), theirs.double()), i


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_separable_edges_round_where_the_specification_does(training, stride, isa):
    """The same numbers but for ties of the rounding; where an instruction set rounds factors, so does the reference."""
    draws, channels, edges = Draws(1), 32, 3
    first, twice = Stage((3, 5, 3, 5, 3), (1, 1, 2, 2, 1), stride), 2
    plan = SeparablePlan(first, (0, 2, 1, 0, 2), edges, twice)

    def weights():
        return SeparableWeights(
            *(
                StageWeights(
                    draws.normal(stage.taps * channels) / 3, draws.normal(len(stage.kernels), channels, channels) / 6
                )
                for stage in (plan.first, plan.second)
            )
        )

    w, b, mixing = weights(), weights(), draws.normal(5)
    x = draws.normal(3, 9, 10, channels).bfloat16()
    size = (3, -(-9 // stride), -(-10 // stride), channels)
    into, grads = [draws.normal(*size), None, None], [draws.normal(*size) for _ in range(edges)]
    rows = plan.normalisations, channels
    moments = None if training else Moments(draws.normal(*rows), draws.normal(*rows).square() + 0.5)

    def run(backend, cast):
        own = [SeparableWeights(*map(cast, record)) for record in (w, b)]
        before = [None if t is None else cast([t])[0] for t in into]
        out, z, found = backend.edges_forward(x, own[0], plan, mixing, moments, before)
        saved = SavedEdges(x, z, found, training)
        return (*out, z, *found), backend.edges_backward(cast(grads), saved, *own, plan, mixing, True)

    with RoundedFactors() if isa == "avx512_bf16" else nullcontext():
        expected = run(reference, lambda record: record)
    actual = run(kernels, floats)
    z = actual[0][edges]
    assert z.dtype == torch.bfloat16
    assert all(own.dtype == torch.float32 for own in (*actual[0][:edges], *actual[1][1:]))
    assert (z == expected[0][edges]).float().mean() > 0.999
    for ours, theirs in zip(actual[0], expected[0], strict=True):
        assert distance(ours, theirs) < NARROW_EDGES
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        assert distance(ours, theirs) < NARROW_EDGES


def test_moments_are_those_before_rounding(isa):
    """A map near 1 varies by less than bfloat16 tells apart: the rounded one would have no variance."""
    x = 1 + 1e-3 * Draws(2).normal(2, 8, 8, 16)
    depthwise = torch.zeros(16, 3, 3)
    depthwise[:, 1, 1] = 1
    weights = StageWeights(depthwise.flatten(), (1 + 2**-10) * torch.eye(16)[None])
    narrow = x.bfloat16()
    z, sums = kernels.stage_forward(narrow, weights, Stage((3,), (1,)))
    exact = narrow.double() * (1 if isa == "avx512_bf16" else 1 + 2**-10)
    assert torch.equal(z, exact.bfloat16()[None])
    torch.testing.assert_close(sums.total[0], exact.sum(dim=(0, 1, 2)), rtol=SUM_FLOAT32, atol=0)
    assert isa == "avx512_bf16" or distance(sums.total[0], z[0].double().sum(dim=(0, 1, 2))) > 10 * SUM_FLOAT32


@pytest.mark.parametrize("stride", [1, 2])
def test_pools(stride, isa):
    draws = Draws(3)
    x = draws.normal(2, 7, 6, 32).bfloat16()
    z, sums = reference.pooling_forward(x, stride)
    grads = [draws.normal(*z.shape[1:]).float() for _ in range(2)]
    ours, own = kernels.pooling_forward(x, stride)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours[0], z[0])
    assert (ours == z).float().mean() > 0.999
    for actual, expected in zip(own, sums, strict=True):
        torch.testing.assert_close(actual, expected, rtol=SUM_FLOAT32, atol=SUM_FLOAT32)
    down = kernels.pooling_backward(grads, x, stride)
    assert distance(down, reference.pooling_backward(grads, x, stride)) < SUM_FLOAT32


def test_reductions(isa):
    draws = Draws(4)
    x = draws.normal(2, 7, 6, 16).bfloat16()
    weights, feedback = (ReductionWeights(draws.normal(3, 8, 16), draws.normal(3, 8, 16)) for _ in range(2))
    z, sums = reference.reductions_forward(x, weights)
    ours, own = kernels.reductions_forward(x, floats(weights))
    assert ours.dtype == torch.bfloat16
    assert (ours == z).float().mean() > 0.999
    for actual, expected in zip(own, sums, strict=True):
        assert distance(actual, expected) < STAGE_FLOAT32
    prologue = Prologue([draws.normal(*z.shape[1:])] * 3, z, *(draws.normal(3, 16) for _ in range(3)))
    passed = Prologue(floats(prologue.grads), z, *floats(prologue[2:]))
    theirs = reference.reductions_backward(prologue, x, weights, feedback, True)
    found = kernels.reductions_backward(passed, x, floats(weights), floats(feedback), True)
    for actual, expected in zip((found[0], *found[1]), (theirs[0], *theirs[1]), strict=True):
        assert distance(actual, expected) < STAGE_FLOAT32


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_sums_of_narrow_and_wide_maps(training, isa):
    """Maps of both kinds in one sum, in runs of every length."""
    draws, count = Draws(5), 3
    stacks = [draws.normal(4, 1, 7, 21, 16).bfloat16(), draws.normal(2, 1, 7, 21, 16).float()]
    terms = Terms((0, 1, 4, 2, 3, 1, 0, 5, 4, 2, 1, 3, 0), (0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2), count)
    maps = torch.cat([stack.double() for stack in stacks])[:5]
    sums = Sums(maps.sum(dim=(1, 2, 3)), maps.square().sum(dim=(1, 2, 3)))
    moments = None if training else Moments(draws.normal(5, 16), draws.normal(5, 16).square() + 0.5)
    factors, grads = draws.normal(len(terms.index)), [draws.normal(1, 7, 21, 16).float() for _ in range(count)]

    def run(backend, given):
        out, found = backend.normalised_forward(given, terms, factors, sums, moments, [grads[0], None, None])
        return *out, *found, *backend.normalised_backward(grads, given, terms, factors, found, training)

    expected = run(reference, [stack.double() for stack in stacks])
    for ours, theirs in zip(run(kernels, stacks), expected, strict=True):
        assert not theirs.any() or distance(ours, theirs) < STAGE_FLOAT32


def test_nan_and_infinity_are_stored(isa):
    x = torch.zeros(1, 4, 4, 16, dtype=torch.bfloat16)
    # A signalling NaN, and the largest float, which rounds to infinity.
    odd = torch.tensor([0x7F800001, 0xFFFFFFFF - 2**32, 0x7F7FFFFF, 0x7F800000], dtype=torch.int32).view(torch.float32)
    weights = StageWeights(torch.zeros(16, 3, 3).flatten(), torch.eye(16)[None])
    x[..., 0] = 1
    reduced = ReductionWeights(torch.zeros(1, 8, 16), torch.zeros(1, 8, 16))
    reduced.first[0, :4, 0] = odd
    z, _ = kernels.reductions_forward(x, reduced)
    assert torch.equal(z[0, 0, 0, 0, :4].isnan(), torch.tensor([True, True, False, False]))
    assert z[0, 0, 0, 0, 2:4].isinf().all()
    assert kernels.stage_forward(x, weights, Stage((3,), (1,)))[0].eq(0).all()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_operators_pass_opcheck(shared):
    draws, ops, checks = Draws(6), torch.ops.bionas_fast_native, ("test_schema", "test_faketensor")
    stage = Stage((3, 5), (1, 2), 1)
    x = draws.normal(*(() if shared else (2,)), 2, 5, 6, 16).bfloat16()
    weights = (draws.normal(stage.taps * 16).float(), draws.normal(2, 16, 16).float())
    affine = [] if shared else [draws.normal(2, 16).float()] * 2
    given = (x, weights, stage.encode(), affine)
    torch.library.opcheck(ops.stage_forward.default, given, test_utils=checks)
    z = ops.stage_forward(*given)[0]
    grads, rows = [draws.normal(2, 5, 6, 16).float()] * 2, [draws.normal(2, 16).float()] * 3
    backward = (grads, [z, *rows], x, weights, weights, stage.encode(), affine, True)
    torch.library.opcheck(ops.stage_backward.default, backward, test_utils=checks)
    terms, factors = Terms((0, 1, 1), (0, 0, 1), 2).encode(), draws.normal(3)
    into = [None, grads[0]]
    torch.library.opcheck(ops.mixed_sum.default, ([z], terms, torch.cat(rows)[:3], rows[0], into), test_utils=checks)
    sums = [draws.normal(2, 16), draws.normal(2, 16).square()]
    torch.library.opcheck(ops.normalised_sum.default, ([z], terms, factors, sums, [], into), test_utils=checks)
    back = (grads, [z], terms, factors, sums, True)
    torch.library.opcheck(ops.normalised_sum_backward.default, back, test_utils=checks)
    if not shared:
        return
    torch.library.opcheck(ops.pooling.default, (x, 1), test_utils=checks)
    torch.library.opcheck(ops.pooling_backward.default, (grads, x, 1), test_utils=checks)
    halves = [draws.normal(1, 8, 16).float()] * 2
    torch.library.opcheck(ops.factorized_reduce.default, (x, halves), test_utils=checks)
    reduced = ops.factorized_reduce(x, halves)[0]
    one = [row[:1] for row in rows]
    reduce_back = ([torch.randn(reduced.shape[1:])], [reduced, *one], x, halves, halves, True)
    torch.library.opcheck(ops.factorized_reduce_backward.default, reduce_back, test_utils=checks)
    plan = SeparablePlan(stage, (0, 1), 2, 1)
    both = [*weights, draws.normal(9 * 16).float(), draws.normal(1, 16, 16).float()]
    edges = (x, both, plan.encode(), draws.normal(2), [], into)
    torch.library.opcheck(ops.separable_edges.default, edges, test_utils=checks)
    _, z, mean, var = ops.separable_edges(*edges)
    for feedback in (both, []):
        last = (grads, [x, z, mean, var], both, feedback, plan.encode(), draws.normal(2), True, True)
        torch.library.opcheck(ops.separable_edges_backward.default, last, test_utils=checks)
