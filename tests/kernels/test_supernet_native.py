"""The kernels of the stacked supernet against their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bionas_fast import native
from bionas_fast.kernels import batch_norm
from bionas_fast.kernels.mixed_sum import reference as mixed_sum
from bionas_fast.kernels.pooling import reference as pooling
from bionas_fast.kernels.records import (
    Affine,
    Moments,
    Prologue,
    SavedEdges,
    SeparablePlan,
    SeparableWeights,
    Stage,
    StageWeights,
    Terms,
)
from bionas_fast.kernels.separable_stage import reference as separable_stage
from bionas_fast.ops.mixed_edges.backends import find
from helpers.native import needs_native
from helpers.tolerances import EDGES_FLOAT32, POOLED, STAGE_FLOAT32, SUM_FLOAT32

composition = find("reference")


def relative(actual, expected, least=1e-30):
    """The largest error over the largest entry, or over ``least`` where that is more."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(least)).item()


def _stage(draw_shared, k, n, h, w, c, stride, kernels, dilations, seed):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def coarse(*shape):  # so few digits that scale · x + shift is exact: nobody is in doubt where ReLU bends
        return randn(*shape).mul(64).round().div(64)

    taps = sum(kernel * kernel for kernel in kernels)
    x = coarse(n, h, w, c) if draw_shared else coarse(k, n, h, w, c)
    weights = StageWeights(randn(taps * c) / 3, randn(k, c, c) / c**0.5)
    feedback = StageWeights(randn(taps * c) / 3, randn(k, c, c) / c**0.5)
    before = None if draw_shared else Affine(coarse(k, c), coarse(k, c))
    size = (n, -(-h // stride), -(-w // stride), c)
    grad, own = randn(2, *size), randn(k, *size)
    affine = (randn(k, c), randn(k, c), randn(k, c))
    return x, weights, feedback, before, grad, own, affine


def floats(record):
    """A record, tuple or list of tensors in float32; None stays."""
    if record is None:
        return None
    each = [tensor.float() for tensor in record]
    return type(record)(*each) if hasattr(record, "_fields") else type(record)(each)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    shared=st.booleans(),
    specs=st.lists(st.sampled_from([(3, 1), (5, 1), (3, 2), (5, 2)]), min_size=1, max_size=5),
    n=st.integers(1, 3),
    h=st.integers(1, 11),
    w=st.integers(1, 35),
    blocks=st.integers(1, 4),
    stride=st.integers(1, 2),
    weights_wanted=st.booleans(),
    isa=st.sampled_from(native.isas() or ("none",)),
    seed=st.integers(0, 2**31),
)
def test_stage_kernels_on_random_shapes(shared, specs, n, h, w, blocks, stride, weights_wanted, isa, seed):
    stride, c, k = stride if shared else 1, 16 * blocks, len(specs)
    kernels, dilations = zip(*specs, strict=True)
    x, weights, feedback, before, grad, own, affine = _stage(shared, k, n, h, w, c, stride, kernels, dilations, seed)
    grads = [grad[i % 2] if i % 3 else own[i] for i in range(k)]
    stage = Stage(kernels, dilations, stride)

    def run(cast, backend):
        given = (cast([x])[0], cast(weights))
        z, sums = backend.stage_forward(*given, stage, cast(before))
        prologue = Prologue(cast(grads), z, *cast(affine))
        found = backend.stage_backward(prologue, *given, cast(feedback), stage, cast(before), weights_wanted)
        return z, *sums, *found

    expected = run(lambda record: record, find("reference"))
    with native.use_isa(isa):
        actual = run(floats, find("native"))
    for i, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.numel() == theirs.numel(), i
        if theirs.numel():
            assert relative(ours.double(), theirs) < STAGE_FLOAT32, i


@needs_native
@pytest.mark.parametrize("isa", native.isas() or ("none",))
@pytest.mark.parametrize("shared", [True, False])
def test_stages_let_nan_through(shared, isa):
    x, weights, _, before, *_ = _stage(shared, 2, 1, 6, 7, 16, 1, (3, 5), (1, 1), 0)
    x[..., 2, 3, 5] = torch.nan
    stage = Stage((3, 5), (1, 1))
    expected, _ = separable_stage.forward(x, weights, stage, before)
    with native.use_isa(isa):
        z, _ = find("native").stage_forward(x.float(), floats(weights), stage, floats(before))
    assert expected.isnan().any()
    assert not expected.isnan().all()
    assert torch.equal(z.isnan(), expected.isnan())


@needs_native
@settings(max_examples=30, deadline=None)
@given(
    edges=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    positions=st.integers(1, 300),
    blocks=st.integers(1, 3),
    given_before=st.tuples(*[st.booleans()] * 3),
    isa=st.sampled_from(native.isas() or ("none",)),
    seed=st.integers(0, 2**31),
)
def test_mixed_sum_kernels_on_random_shapes(edges, positions, blocks, given_before, isa, seed):
    edges, c = sorted(edges), 16 * blocks
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    stacks = [randn(3, 1, 1, positions, c), randn(2, 1, 1, positions, c)]
    index = torch.randint(5, (len(edges),), generator=generator).tolist()
    terms = Terms(tuple(index), tuple(edges), 3)
    weight, offset = randn(len(edges), c), randn(3, c)
    grads = [randn(1, 1, positions, c) for _ in range(3)]
    into = [grad if given else None for grad, given in zip(grads, given_before, strict=True)]
    expected = mixed_sum.forward(stacks, terms, weight, offset, into)
    expected += mixed_sum.backward(grads, stacks, terms)
    kernels = find("native")
    with native.use_isa(isa):
        into = [None if t is None else t.float() for t in into]
        actual = kernels.sum_forward(floats(stacks), terms, weight.float(), offset.float(), into)
        actual += kernels.sum_backward(floats(grads), floats(stacks), terms)
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative(ours.double(), theirs) < SUM_FLOAT32


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    stride=st.integers(1, 2),
    coarse=st.booleans(),
    isa=st.sampled_from(native.isas() or ("none",)),
    seed=st.integers(0, 2**31),
)
def test_pool_kernels_on_random_shapes(n, h, w, stride, coarse, isa, seed):
    """Coarse inputs have equal maxima."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, h, w, 32, generator=generator)
    x = x.round() if coarse else x
    z, sums = pooling.forward(x.double(), stride)
    grads = [torch.randn(z.shape[1:], generator=generator) for _ in range(2)]
    down = pooling.backward([grad.double() for grad in grads], x.double(), stride)
    ops = torch.ops.bionas_fast_native
    with native.use_isa(isa):
        actual = (*ops.pooling(x, stride), ops.pooling_backward(grads, x, stride))
    for ours, theirs in zip(actual, (z, *sums, down), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **POOLED)


@needs_native
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("weights_wanted", [True, False])
def test_operators_pass_opcheck(shared, weights_wanted):
    ops = torch.ops.bionas_fast_native
    kernels, dilations, stride = (3, 5, 3), (1, 1, 2), 2 if shared else 1
    x, weights, feedback, before, grad, own, affine = _stage(shared, 3, 2, 5, 6, 16, stride, kernels, dilations, 0)
    x, weights, feedback, before = x.float(), floats(weights), floats(feedback), floats(before) or ()
    grads, affine = floats([*grad, own[2]]), floats(affine)
    checks = ("test_schema", "test_faketensor")
    stage = (Stage(kernels, dilations, stride).encode(), before)
    torch.library.opcheck(ops.stage_forward.default, (x, weights, *stage), test_utils=checks)
    z = ops.stage_forward(x, weights, *stage)[0]
    backward = (grads, [z, *affine], x, weights, feedback, *stage, weights_wanted)
    torch.library.opcheck(ops.stage_backward.default, backward, test_utils=checks)
    terms = Terms((0, 2, 1), (0, 0, 1), 2).encode()
    for into in ([None, None], [None, grads[1]]):
        sums = ([z], terms, affine[0], affine[1][:2], into)
        torch.library.opcheck(ops.mixed_sum.default, sums, test_utils=checks)
    torch.library.opcheck(ops.mixed_sum_backward.default, (grads[:2], [z], terms), test_utils=checks)
    image = x if shared else x[0]
    torch.library.opcheck(ops.pooling.default, (image, 2), test_utils=checks)
    pooled = ops.pooling(image, 2)[0]
    torch.library.opcheck(ops.pooling_backward.default, ([pooled[0], pooled[1]], image, 2), test_utils=checks)


@needs_native
def test_pools_let_nan_through():
    x = torch.randn(1, 4, 4, 16)
    x[0, 1, 2, 3] = float("nan")
    ours, theirs = torch.ops.bionas_fast_native.pooling(x, 1)[0], pooling.forward(x, 1)[0]
    assert torch.equal(ours.isnan(), theirs.isnan())


@needs_native
def test_memory_is_kept_for_the_next_step_and_given_back():
    x = torch.randn(32, 16, 16, 16)
    native.release_memory()
    z = torch.ops.bionas_fast_native.pooling(x, 1)[0]
    assert z.numel() * z.element_size() >= 1 << 20
    expected, where = z.clone(), z.data_ptr()
    assert native.release_memory() == 0, "in use"
    part = z[1]
    del z
    assert native.release_memory() == 0, "a view is still in use"
    assert torch.equal(part, expected[1])
    del part
    z = torch.ops.bionas_fast_native.pooling(x, 1)[0]
    assert z.data_ptr() == where
    assert torch.equal(z, expected)
    del z
    assert native.release_memory() >= 1 << 20
    assert native.release_memory() == 0


def test_stage_reference_is_autograd_when_feedback_is_the_weight():
    """With B = W the specification itself is the gradient of the plain stage followed by batch normalisation."""
    kernels, dilations, c = (3, 5, 3), (1, 1, 2), 4
    x, weights, _, _, grad, _, _ = _stage(True, 3, 2, 6, 7, c, 1, kernels, dilations, 0)
    leaves = [t.clone().requires_grad_() for t in (x, *weights)]
    stage = Stage(kernels, dilations)
    z, (total, squares) = separable_stage.forward(leaves[0], StageWeights(*leaves[1:]), stage)
    positions = z[0].numel() // c
    g = torch.stack([grad[0], grad[1], grad[0]])
    normal = torch.stack([F.batch_norm(m.reshape(-1, c), None, None, training=True).view_as(m) for m in z])
    normal.backward(g)
    torch.testing.assert_close(total, z.sum(dim=(1, 2, 3)))
    torch.testing.assert_close(squares, z.square().sum(dim=(1, 2, 3)))

    mean, var = total / positions, squares / positions - (total / positions).square()
    rstd = (var + 1e-5).rsqrt().detach()
    slope = rstd.square() * (g * normal).sum(dim=(1, 2, 3)) / positions * rstd / rstd
    affine = (rstd, -slope, slope * mean - rstd * g.sum(dim=(1, 2, 3)) / positions)
    prologue = Prologue([grad[0], grad[1], grad[0]], z.detach(), *(t.detach() for t in affine))
    grads = separable_stage.backward(prologue, x, weights, weights, stage, None, True)
    torch.testing.assert_close(grads.x, leaves[0].grad)
    torch.testing.assert_close(grads.depthwise, leaves[1].grad)
    torch.testing.assert_close(grads.pointwise.view_as(leaves[2]), leaves[2].grad)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    specs=st.lists(st.tuples(st.sampled_from([3, 5]), st.integers(1, 2), st.integers(0, 2)), min_size=1, max_size=5),
    twice=st.integers(0, 5),
    n=st.integers(2, 3),
    h=st.integers(5, 9),
    w=st.integers(5, 11),
    channels=st.integers(2, 20),  # one: its weight gradients vanish, for normalisation undoes any scale
    stride=st.integers(1, 2),
    weights_wanted=st.booleans(),
    into=st.tuples(*[st.booleans()] * 3),
    isa=st.sampled_from(native.isas() or ("none",)),
    seed=st.integers(0, 2**31),
)
def test_separable_edges_on_random_shapes(
    specs, twice, n, h, w, channels, stride, weights_wanted, into, isa, seed
):  # fmt: skip
    """Fused and put together from its parts in float64, in training and with given statistics."""
    arguments = separable_edges_arguments(specs, min(twice, len(specs)), n, h, w, channels, stride, into, seed)
    assume(not near_a_bend(arguments))
    expected = run_separable_edges(composition, arguments, weights_wanted)
    with native.use_isa(isa):
        actual = run_separable_edges(find("native"), arguments, weights_wanted, wide=16 * -(-channels // 16))
    for name, theirs in expected.items():
        ours = actual[name]
        assert ours.numel() == theirs.numel(), name
        if theirs.numel():
            # The gradient of mixing adds up that many products of either sign: little may be left of them.
            least = arguments["grads"][0].numel() ** 0.5 if name.startswith("grad 0") else 1e-30
            assert relative(ours.double(), theirs, least) < EDGES_FLOAT32, name


def separable_edges_arguments(specs, twice, n, h, w, channels, stride, into, seed):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kernels, dilations, edges = (list(column) for column in zip(*specs, strict=True))
    dilations[:twice] = [1] * twice

    def weights():
        return SeparableWeights(
            *(
                StageWeights(randn(channels * sum(k * k for k in ks)) / 3, randn(len(ks), channels, channels) / 3)
                for ks in (kernels, kernels[:twice])
            )
        )

    size = (n, -(-h // stride), -(-w // stride), channels)
    return {
        "x": randn(n, h, w, channels),
        "weights": weights(),
        "feedback": weights(),
        "plan": SeparablePlan(Stage(tuple(kernels), tuple(dilations), stride), tuple(edges), 3, twice),
        "mixing": randn(len(specs)),
        "into": [tensor if given else None for tensor, given in zip(randn(3, *size), into, strict=True)],
        "grads": [randn(*size) for _ in range(3)],
        "given": Moments(randn(twice + len(specs), channels), randn(twice + len(specs), channels).square() + 0.1),
    }


def near_a_bend(a):
    """Whether a second ReLU sees a value so small that its sign, and with it the gradient, is a matter of rounding."""
    twice = a["plan"].twice
    z, sums = separable_stage.forward(a["x"], a["weights"].first, a["plan"].first)
    of_batch = batch_norm.moments(sums, z[0].numel() // z.shape[-1])
    return any(
        ((own - m[:, None, None, None]) * batch_norm.rstd(v)[:, None, None, None]).abs().lt(1e-5).any()
        for own, m, v in ((z[:twice], *(s[:twice] for s in given)) for given in (of_batch, a["given"]))
    )


def run_separable_edges(backend, a, weights_wanted, wide=None):
    """Every result, by name; in float32 and with zeros for more channels if ``wide`` says how many."""
    channels = a["x"].shape[-1]

    def cast(tensor, value=0.0):
        if wide is None or tensor is None:
            return tensor
        tensor = F.pad(tensor, (0, wide - channels), value=value)
        return tensor if tensor.dim() == 2 else tensor.float()

    def weights(name):
        return a[name] if wide is None else SeparableWeights(*(floats(stage) for stage in a[name]))

    x, found = cast(a["x"]), {}
    for training in (True, False):
        given = None if training else Moments(cast(a["given"].mean), cast(a["given"].var, 1.0))
        into = [cast(t) for t in a["into"]]
        out, z, moments = backend.edges_forward(x, weights("weights"), a["plan"], a["mixing"], given, into)
        saved, incoming = SavedEdges(x, z, moments, training), [cast(t) for t in a["grads"]]
        for feedback in (None, weights("feedback")):
            grads = backend.edges_backward(
                incoming, saved, weights("weights"), feedback, a["plan"], a["mixing"], weights_wanted
            )
            for i, grad in enumerate(grads):
                cut = grad[..., :channels] if i == 1 and feedback else grad
                found[f"grad {i}, {training=}, {feedback is not None}"] = cut
        found |= {f"out {e}, {training=}": t[..., :channels] for e, t in enumerate(out)}
        named = (("z", z), ("mean", moments.mean), ("var", moments.var))
        found |= {f"{name}, {training=}": t[..., :channels] for name, t in named}
    return found


@needs_native
def test_separable_edges_pass_opcheck():
    specs = [(3, 1, 0), (5, 1, 2), (5, 2, 0)]
    a = separable_edges_arguments(specs, 1, 2, 5, 6, 16, 2, (True, False, True), 0)
    ops, checks = torch.ops.bionas_fast_native, ("test_schema", "test_faketensor")
    weights, feedback = (floats(a[key].tensors()) for key in ("weights", "feedback"))
    into, plan, x = [None if t is None else t.float() for t in a["into"]], a["plan"].encode(), a["x"].float()
    for moments in ((), a["given"]):
        forward = (x, weights, plan, a["mixing"], moments, into)
        torch.library.opcheck(ops.separable_edges.default, forward, test_utils=checks)
    _, z, mean, var = ops.separable_edges(x, weights, plan, a["mixing"], (), into)
    for way in (feedback, []):
        back = (floats(a["grads"]), [x, z, mean, var], weights, way, plan, a["mixing"], True, True)
        torch.library.opcheck(ops.separable_edges_backward.default, back, test_utils=checks)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": [3, 1, 0, 1]}, "plan: expected a kernel, a dilation and an edge"),
        ({"plan": [2, 1, 0, 2, 1, 3, 5, 1, 1]}, "edges: expected 0 to"),
        ({"plan": [3, 3, 0, 2, 1, 3, 5, 1, 1]}, "twice: expected 0 to 2, got 3"),
        ({"plan": [3, 1, 0, 2, 3, 3, 5, 1, 1]}, "stride: expected 1 to 2, got 3"),
        ({"plan": [3, 1, 0, 2, 1, 3, 7, 1, 1]}, "kernels: expected 3 or 5"),
        ({"plan": [3, 1, 0, 2, 1, 3, 5, 1, 0]}, "dilations: expected 1 to 64, got 0"),
        ({"mixing": torch.ones(1, dtype=torch.float64)}, "mixing: expected a weight for each branch"),
        ({"weights": []}, "weights: expected depthwise and pointwise ones"),
        ({"into": [None]}, "into: expected one for each edge"),
        ({"moments": [torch.ones(3, 16)]}, "moments: expected mean and variance"),
    ],
)
def test_impossible_plans_are_refused(change, message):
    a = separable_edges_arguments([(3, 1, 0), (5, 1, 2)], 1, 2, 5, 6, 16, 1, (False,) * 3, 0)
    given = {
        "x": a["x"].float(),
        "weights": floats(a["weights"].tensors()),
        "plan": a["plan"].encode(),
        "mixing": a["mixing"],
        "moments": [],
        "into": a["into"],
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bionas_fast_native.separable_edges(**given | change)


def test_composition_is_autograd_when_feedback_is_the_weight():
    """In float64, batch normalisation and all, against PyTorch's own layers."""
    specs, twice, channels = [(3, 1, 0), (5, 1, 2), (5, 2, 0)], 2, 3
    a = separable_edges_arguments(specs, twice, 2, 5, 6, channels, 2, (False,) * 3, 0)
    kernels, dilations, stride, edges = *vars(a["plan"].first).values(), a["plan"].edges
    leaves = [t.clone().requires_grad_() for t in (a["x"], a["mixing"], *a["weights"].tensors())]
    x, mixing, *weights = leaves
    first, second = (
        [part.view(channels, 1, k, k) for part, k in zip(flat.split([channels * k * k for k in ks]), ks, strict=True)]
        for flat, ks in ((weights[0], kernels), (weights[2], kernels[:twice]))
    )
    sums = [torch.zeros_like(grad.permute(0, 3, 1, 2)) for grad in a["grads"]]
    for k, e in enumerate(edges):
        stages = [(first[k], weights[1][k], stride, dilations[k])]
        stages += [(second[k], weights[3][k], 1, 1)] if k < twice else []
        y = x.permute(0, 3, 1, 2)
        for depthwise, pointwise, step, dilation in stages:
            pad = dilation * (depthwise.shape[-1] // 2)
            y = F.conv2d(F.relu(y), depthwise, None, step, pad, dilation, channels)
            y = F.batch_norm(F.conv2d(y, pointwise[:, :, None, None]), None, None, training=True)
        sums[e] = sums[e] + mixing[k] * y
    total = sum((own * grad.permute(0, 3, 1, 2)).sum() for own, grad in zip(sums, a["grads"], strict=True))
    expected_x, expected_mixing, *each = torch.autograd.grad(total, leaves)
    given = (a["weights"], a["plan"], a["mixing"])
    out, z, moments = composition.edges_forward(a["x"], *given, None, a["into"])
    saved = SavedEdges(a["x"], z, moments, True)
    actual = composition.edges_backward(a["grads"], saved, a["weights"], a["weights"], a["plan"], a["mixing"], True)
    for ours, theirs in zip(out, sums, strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 2, 3, 1))
    expected = (expected_mixing, expected_x, torch.cat([grad.flatten() for grad in each]))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
