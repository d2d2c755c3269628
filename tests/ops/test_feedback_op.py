"""The feedback ops against autograd of PyTorch's own convolution and linear map, with B in the place of W."""

from __future__ import annotations

import itertools
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bionas_fast import InputError, use_backend
from bionas_fast.backends import BACKENDS, explain, op_names
from bionas_fast.kernels.feedback import reference
from bionas_fast.ops.feedback import (
    Feedback,
    FeedbackSegments,
    feedback_conv,
    feedback_linear,
    feedback_segments,
    feedback_weight,
    torch_library,
)
from helpers.feedback_cases import (
    CASES,
    MODES,
    Case,
    check,
    every_case,
    every_mode,
    expected,
    feedback_of,
    one_of_each,
    saved_tensors_as_they_are,
)
from helpers.tolerances import assert_close


@every_mode
@every_case
def test_only_the_error_sent_down_changes(case, mode):
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of(mode, w)
    assert_close(feedback_weight(w, feedback), b, torch.float32)
    y = case.ours(x, w, bias, feedback)
    assert torch.equal(y, case.plain(x, w, bias))
    actual, wanted = torch.autograd.grad(y, (x, w, bias), grad), expected(case, x, w, bias, b, grad)
    assert_close(actual[0], wanted[0], torch.float32 if mode == "drawn_sign" else torch.float64)
    check(actual[1:], wanted[1:])


@every_case
def test_feedback_equal_to_the_weight_passes_gradcheck(case):
    tensors = case.tensors()[:3]
    assert torch.autograd.gradcheck(case.ours, tensors)
    stored = Feedback("stored", tensors[1].detach().clone())
    # gradcheck perturbs W in place; B stands still, which alters nothing in δ_in = convᵀ(δ; W).
    assert torch.autograd.gradcheck(lambda *t: case.ours(*t, stored), tensors)


@every_case
def test_back_propagation_is_pytorchs_bit_for_bit(case):
    x, w, bias, grad = case.tensors(torch.float32)
    actual = torch.autograd.grad(case.ours(x, w, bias), (x, w, bias), grad)
    wanted = torch.autograd.grad(case.plain(x, w, bias), (x, w, bias), grad)
    assert all(torch.equal(a, e) for a, e in zip(actual, wanted, strict=True))


@pytest.mark.parametrize("asked", list(itertools.product([False, True], repeat=3))[1:], ids=str)
@one_of_each
def test_only_gradients_that_are_asked_for_are_made(case, asked, monkeypatch):
    *tensors, grad = case.tensors()
    feedback, b = feedback_of("stored", tensors[1])
    wanted = expected(case, *tensors, b, grad)
    tensors = [t.detach().requires_grad_(a) for t, a in zip(tensors, asked, strict=True)]
    masks = []

    def watch(backward):
        def watched(*arguments):
            masks.append(list(arguments[-1]))
            return backward(*arguments)

        return watched

    for name in ("conv_backward", "linear_backward"):
        monkeypatch.setattr(reference, name, watch(getattr(reference, name)))
    for own_node in (True, False):
        masks.clear()
        with saved_tensors_as_they_are() if own_node else nullcontext():
            y = case.ours(*tensors, feedback)
        y.backward(grad)
        # torch's own convolution does not call ours.
        assert masks == [list(asked)] if own_node or y.grad_fn.name() != "ConvolutionBackward0" else not masks
        assert [t.grad is not None for t in tensors] == list(asked)
        check((t.grad for t, a in zip(tensors, asked, strict=True) if a), itertools.compress(wanted, asked))
        for tensor in tensors:
            tensor.grad = None


@one_of_each
def test_bias_is_optional(case):
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of("stored", w)
    actual = torch.autograd.grad(case.ours(x, w, None, feedback), (x, w), grad)
    check(actual, expected(case, x, w, bias, b, grad)[:2])


# Layouts and sizes


def spread(t: Tensor) -> Tensor:
    """Copy a tensor to memory with gaps between the values."""
    return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]


LAYOUTS = {
    "gaps": spread,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
}


@every_mode
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["conv2d-groups", "linear-rank4"])
def test_memory_layout_changes_nothing(name, layout, mode):
    case = CASES[name]
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of(mode, w)
    wanted = expected(case, x, w, bias, b, grad)
    feedback = feedback._replace(stored=layout(feedback.stored))
    x, w = (layout(t.detach()).requires_grad_() for t in (x, w))
    y = case.ours(x, w, bias, feedback)
    assert_close(y, case.plain(x, w, bias))
    actual = torch.autograd.grad(y, (x, w, bias), layout(grad))
    assert_close(actual[0], wanted[0], torch.float32 if mode == "drawn_sign" else torch.float64)
    check(actual[1:], wanted[1:])


@every_case
def test_a_gradient_of_stride_0(case):
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of("stored", w)
    case.ours(x, w, bias, feedback).sum().backward()
    check((x.grad, w.grad, bias.grad), expected(case, x, w, bias, b, torch.ones_like(grad)))


@every_mode
@one_of_each
def test_an_empty_batch(case, mode):
    x, w, bias, _ = Case((0, *case.input[1:]), case.weight, case.geometry).tensors()
    y = case.ours(x, w, bias, feedback_of(mode, w)[0])
    assert y.shape == case.plain(x, w, bias).shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not w.grad.any() and not bias.grad.any()


# Registration and input checks


@pytest.mark.parametrize("advance", [False, True], ids=["still", "advance"])
@every_mode
@one_of_each
def test_opcheck(case, mode, advance):
    x, w, bias, _ = case.tensors(torch.float32)
    feedback, _ = feedback_of(mode, w)
    arguments = (x, w, bias, *feedback[:5], advance)
    if w.dim() == 2:
        torch.library.opcheck(torch.ops.bionas_fast.feedback_linear.default, (*arguments, "reference"))
    else:
        geometry = ([2, 2], [1, 1], [1, 1], 2)
        torch.library.opcheck(torch.ops.bionas_fast.feedback_conv.default, (*arguments, *geometry, "reference"))


def in_memory(x: Tensor, w: Tensor, last: str) -> tuple[Tensor, Tensor]:
    """Input and weight, those of them in channels_last that ``last`` names; of a linear map none."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(w.dim(), torch.contiguous_format)
    return tuple(t.contiguous(memory_format=layout) if name in last else t for t, name in ((x, "input"), (w, "weight")))


every_layout = pytest.mark.parametrize("last", ["", "input", "weight", "input-weight"], ids=lambda s: f"last={s}")


@every_layout
@pytest.mark.parametrize("mask", [[True] * 3, [True, False, False], [False, True, True]], ids=str)
@one_of_each
def test_opcheck_of_the_backward_ops(case, mask, last):
    x, w, _, grad = (t.detach() for t in case.tensors(torch.float32))
    x, w = in_memory(x, w, last)
    arguments = (grad, x, w, *feedback_of("stored_sign", w)[0])
    tests = ("test_schema", "test_faketensor")
    if w.dim() == 2:
        op, geometry = torch.ops.bionas_fast.feedback_linear_backward.default, ()
    else:
        op, geometry = torch.ops.bionas_fast.feedback_conv_backward.default, ([2, 2], [1, 1], [1, 1], 2)
    torch.library.opcheck(op, (*arguments, *geometry, "reference", mask), test_utils=tests)


@every_layout
@every_case
def test_fake_tensors_of_a_gpu(case, last, monkeypatch):
    """Shape, dtype and layout of every result, and no kernel is looked for, let alone launched.

    The backward op is called by itself: without a GPU, autograd does not start on fake tensors of one.
    """
    monkeypatch.delattr(torch_library, "_triton")
    gpu = {"device": "cuda", "dtype": torch.float16}
    with FakeTensorMode():
        x, w = in_memory(torch.empty(case.input, **gpu), torch.empty(case.weight, **gpu), last)
        stored, stream = torch.empty_like(w), torch.empty(2, dtype=torch.int64, device="cuda")
        y, plain = case.ours(x, w, None, Feedback("drawn_sign", stored, stream)), case.plain(x, w)
        assert (y.shape, y.dtype, y.device, y.stride()) == (plain.shape, plain.dtype, plain.device, plain.stride())
        op = torch.ops.bionas_fast.feedback_linear_backward
        geometry: list = []
        if w.dim() > 2:
            op = torch.ops.bionas_fast.feedback_conv_backward
            defaults = {"stride": 1, "padding": 0, "dilation": 1} | case.geometry
            per_axis = [defaults[name] for name in ("stride", "padding", "dilation")]
            geometry = [[n] * (w.dim() - 2) if isinstance(n, int) else list(n) for n in per_axis]
            geometry.append(case.geometry.get("groups", 1))
        backend = explain(f"feedback_{'conv' if geometry else 'linear'}", "cuda").backend
        feedback = Feedback("drawn_sign", stored, stream, 0.7, 0.3)
        grads = op(torch.empty_like(y), x, w, *feedback, *geometry, backend, [True] * 3)
        for gradient, source in zip(grads, (x, w, w.new_empty(w.shape[0])), strict=True):
            assert (gradient.shape, gradient.dtype, gradient.device) == (source.shape, source.dtype, source.device)
            assert gradient.stride() == source.stride()
        segments = FeedbackSegments((w.numel(),), ("drawn_sign",), (0.7,), (0.3,))
        b = feedback_segments(w.flatten(), None, stream[None], segments)
        assert (b.shape, b.dtype, b.device) == ((w.numel(),), w.dtype, w.device)


def test_triton_serves_gpus():
    pytest.importorskip("triton", reason="Triton exists for Linux only")
    for op in ("feedback_conv", "feedback_linear", "feedback_segments"):
        assert explain(op, "cuda").backend == "triton"
        assert explain(op, "cpu").reasons["triton"] == "runs on CUDA devices only"


def test_without_triton_gpus_have_the_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    choice = explain("feedback_conv", "cuda")
    assert choice.backend == "reference"
    assert choice.reasons["triton"].startswith("Triton cannot be imported: ")


# Several layers at once

LENGTHS = (7, 1, 12, 5, 3, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_segments_are_layers_side_by_side(dtype):
    torch.manual_seed(0)
    w, stored = torch.randn(2, sum(LENGTHS), dtype=dtype)
    stream = torch.arange(12).view(6, 2)
    segments = FeedbackSegments(LENGTHS, (*MODES, "custom"), (0.7,) * 6, (0.3,) * 6)
    parts = zip(w.split(LENGTHS), stored.split(LENGTHS), stream, segments.modes, strict=True)
    wanted = [
        torch.zeros_like(part) if mode == "custom" else feedback_weight(part, Feedback(mode, kept, own, 0.7, 0.3))
        for part, kept, own, mode in parts
    ]
    # Only what is read, and something behind it that nobody reads.
    reads = zip(stored.split(LENGTHS), segments.modes, strict=True)
    stored = torch.cat([*(part for part, mode in reads if mode.startswith("stored")), torch.ones(3, dtype=dtype)])
    assert_close(feedback_segments(w, stored, stream, segments), torch.cat(wanted))
    with use_backend("reference"):
        assert torch.equal(feedback_segments(w, stored, stream, segments), torch.cat(wanted))
    op = torch.ops.bionas_fast.feedback_segments.default
    for backend in {"reference", explain("feedback_segments", "cpu").backend}:
        torch.library.opcheck(op, (w, stored, stream, *map(list, segments), backend))


def test_a_backend_that_cannot_run_says_why():
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    for backend in BACKENDS[1:]:
        if backend not in explain("feedback_linear", "cpu").reasons:
            continue
        with pytest.raises(InputError, match=f"feedback_linear cannot run on backend '{backend}': .+"):
            feedback_linear(x, w, backend=backend)
        with use_backend(backend), pytest.raises(InputError, match=f"cannot run on backend '{backend}'"):
            feedback_linear(x, w)
        with use_backend(backend):  # an argument outweighs the block
            assert torch.equal(feedback_linear(x, w, backend="reference"), x @ w.t())


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(InputError, match="unknown backend 'tritn'; did you mean 'triton'"):
        feedback_linear(torch.ones(2, 3), torch.ones(4, 3), backend="tritn")
    with (
        pytest.raises(InputError, match="unknown backend 'refrence'; did you mean 'reference'"),
        use_backend("refrence"),
    ):
        pass
    assert {"feedback_conv", "feedback_linear", "direct_conv", "direct_linear"} <= set(op_names())


IMAGE, KERNEL = torch.ones(1, 3, 5, 5), torch.ones(4, 3, 3, 3)
MISTAKES = {
    "weight-dims": (lambda: feedback_conv(IMAGE, torch.ones(4, 3)), "weight: expected 3 to 5 dimensions"),
    "input-dims": (lambda: feedback_conv(IMAGE[0], KERNEL), r"input: expected 4 dimensions .* \[3, 5, 5\]"),
    "channels": (lambda: feedback_conv(IMAGE[:, :2], KERNEL), "input: expected 3 channels, got 2"),
    "groups": (lambda: feedback_conv(IMAGE, KERNEL, groups=3), "groups: 3 does not divide the 4"),
    "stride": (lambda: feedback_conv(IMAGE, KERNEL, stride=(1, 2, 3)), "stride: expected one number or 2"),
    "bias": (lambda: feedback_conv(IMAGE, KERNEL, torch.ones(3)), r"bias: expected \[4\], got \[3\]"),
    "linear-weight": (lambda: feedback_linear(IMAGE, KERNEL), r"weight: expected \[out_features, in_features\]"),
    "linear-input": (lambda: feedback_linear(torch.ones(2, 4), torch.ones(5, 3)), r"input: expected \[\.\.\., 3\]"),
    "mode": (lambda: feedback_conv(IMAGE, KERNEL, None, Feedback("sgn")), "unknown mode 'sgn'; did you mean 'sign'"),
    "no-stored": (lambda: feedback_conv(IMAGE, KERNEL, None, Feedback("stored")), "'stored' needs a stored tensor"),
    "stored": (
        lambda: feedback_conv(IMAGE, KERNEL, None, Feedback("stored", KERNEL[:2])),
        r"expected the weight's shape \[4, 3, 3, 3\], got \[2, 3, 3, 3\]",
    ),
    "no-stream": (lambda: feedback_conv(IMAGE, KERNEL, None, Feedback("drawn_sign")), "needs a stream"),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
