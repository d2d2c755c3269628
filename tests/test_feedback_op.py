"""The feedback ops against autograd of PyTorch's own convolution and linear map, with B in the place of W."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bionas_fast import InputError, use_backend
from bionas_fast.backends import BACKENDS, explain, op_names
from bionas_fast.kernels.feedback import reference
from bionas_fast.ops import feedback_library
from bionas_fast.ops.feedback import (
    Feedback,
    FeedbackSegments,
    feedback_conv,
    feedback_linear,
    feedback_segments,
    feedback_weight,
)
from tolerances import assert_close

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass
class Case:
    """Shapes of an input and a weight; a weight of two dimensions is a linear map."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    geometry: dict = field(default_factory=dict)

    def plain(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(x, w, b) if w.dim() == 2 else CONVS[w.dim() - 2](x, w, b, **self.geometry)

    def ours(self, x: Tensor, w: Tensor, b: Tensor | None = None, feedback: Feedback = Feedback()) -> Tensor:  # noqa: B008
        if w.dim() == 2:
            return feedback_linear(x, w, b, feedback)
        return feedback_conv(x, w, b, feedback, **self.geometry)

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input, weight, bias and a gradient of the output."""
        torch.manual_seed(0)
        x, w, b = (torch.randn(s, dtype=dtype) for s in (self.input, self.weight, self.weight[:1]))
        return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), torch.randn_like(self.plain(x, w))


CASES = {
    "conv1d": Case((2, 3, 9), (4, 3, 3)),
    "conv1d-stride-pad-dilation": Case((2, 3, 12), (5, 3, 4), {"stride": 3, "padding": 2, "dilation": 2}),
    "conv2d": Case((2, 3, 7, 6), (4, 3, 3, 3), {"padding": 1}),
    "conv2d-1x1": Case((2, 3, 5, 5), (4, 3, 1, 1)),
    "conv2d-even-kernel": Case((2, 3, 7, 6), (4, 3, 2, 4), {"padding": (1, 2)}),
    "conv2d-stride-leaves-rest": Case((2, 3, 8, 9), (4, 3, 3, 3), {"stride": (3, 2)}),
    "conv2d-unlike-axes": Case((1, 2, 9, 11), (3, 2, 3, 2), {"stride": (2, 1), "padding": (0, 3), "dilation": (1, 3)}),
    "conv2d-groups": Case((2, 6, 6, 6), (4, 3, 3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    "conv2d-depthwise-dilated": Case((2, 4, 9, 9), (4, 1, 5, 5), {"groups": 4, "padding": 4, "dilation": 2}),
    "conv2d-depth-multiplier": Case((2, 3, 6, 6), (6, 1, 3, 3), {"groups": 3}),
    "conv3d": Case((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
    "conv3d-groups": Case((2, 4, 4, 4, 4), (4, 2, 3, 3, 3), {"groups": 2, "padding": 1}),
    "linear": Case((4, 5), (3, 5)),
    "linear-vector": Case((5,), (3, 5)),
    "linear-rank4": Case((2, 3, 4, 5), (3, 5)),
    "linear-one-output": Case((4, 5), (1, 5)),
    "linear-no-inputs": Case((4, 0), (3, 0)),
    "linear-no-outputs": Case((4, 5), (0, 5)),
}
MODES = ("weight", "stored", "sign", "stored_sign", "drawn_sign")
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_mode = pytest.mark.parametrize("mode", MODES)
one_of_each = pytest.mark.parametrize("case", [CASES["conv2d-groups"], CASES["linear"]], ids=["conv", "linear"])


def feedback_of(mode: str, w: Tensor, stream: Tensor | None = None) -> tuple[Feedback, Tensor]:
    """A feedback of that mode and the B that it stands for. (``uniform`` has its own oracle in test_rules.)"""
    w = w.detach()
    stored = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=w.dtype)
    stream = torch.tensor([3, 4]) if stream is None else stream
    b = {
        "weight": lambda: w,
        "stored": lambda: stored,
        "sign": lambda: 0.3 * w.sign(),
        "stored_sign": lambda: stored.abs() * w.sign(),
        "drawn_sign": lambda: 0.7 * reference.uniform(w.shape, stream).to(w.dtype) * w.sign(),
    }[mode]()
    return Feedback(mode, stored, stream, bound=0.7, scale=0.3), b


def expected(case: Case, x: Tensor, w: Tensor, bias: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """δ_in through B, ∂W and ∂b through W, all by autograd of PyTorch's own op."""
    down = torch.autograd.grad(case.plain(x, b), x, grad)
    return *down, *torch.autograd.grad(case.plain(x, w, bias), (w, bias), grad)


def saved_tensors_as_they_are(seen: Callable[[Tensor], None] = lambda tensor: None):
    """Hooks that change nothing; with them a node of our own runs, which leaves to them what it saves."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: (seen(t), t)[1], lambda t: t)


def check(actual, wanted) -> None:
    for a, e in zip(actual, wanted, strict=True):
        assert_close(a, e, torch.float32 if a.dtype == torch.float32 else torch.float64)


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
    """The same values with gaps between them."""
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


# Draws


@one_of_each
def test_every_pass_in_flight_keeps_the_draw_of_its_forward(case):
    x, w, bias, grad = case.tensors()
    stream = torch.tensor([5, 0])
    feedback, first = feedback_of("drawn_sign", w, stream)
    feedback = feedback._replace(advance=True)
    one, two = case.ours(x, w, bias, feedback), case.ours(x, w, bias, feedback)
    assert stream.tolist() == [5, 0]
    for count, y in enumerate((one, two), start=1):
        down = torch.autograd.grad(y, x, grad)[0]
        assert_close(down, expected(case, x, w, bias, first, grad)[0], torch.float32)
        assert stream.tolist() == [5, count]
    _, third = feedback_of("drawn_sign", w, stream)
    assert not torch.equal(first, third)
    down = torch.autograd.grad(case.ours(x, w, bias, feedback), x, grad)[0]
    assert_close(down, expected(case, x, w, bias, third, grad)[0], torch.float32)


@one_of_each
def test_a_retained_graph_keeps_its_draw(case):
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of("drawn_sign", w)
    y = case.ours(x, w, bias, feedback._replace(advance=True))
    passes = [torch.autograd.grad(y, x, grad, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*passes)
    assert_close(passes[0], expected(case, x, w, bias, b, grad)[0], torch.float32)


@one_of_each
def test_gradient_checkpointing_sees_the_same_draw(case):
    x, w, bias, grad = case.tensors()

    def run(wrap):
        stream, results = torch.tensor([5, 0]), []
        feedback = feedback_of("drawn_sign", w, stream)[0]._replace(advance=True)
        for _ in range(2):
            y = wrap(lambda x: case.ours(x.sin(), w, bias, feedback).sin(), x)
            results += torch.autograd.grad(y, (x, w, bias), grad)
        return results, stream

    (plain, stream), (saved, its_stream) = (
        run(lambda f, x: f(x)),
        run(lambda f, x: checkpoint(f, x, use_reentrant=False)),
    )
    assert all(torch.equal(p, s) for p, s in zip(plain, saved, strict=True))
    assert torch.equal(stream, its_stream) and stream.tolist() == [5, 2]


# torch's own node


@every_mode
@every_case
def test_hooks_on_saved_tensors_change_nothing(case, mode):
    """Without them torch's own node runs, and is handed B."""
    x, w, bias, grad = case.tensors()
    feedback, _ = feedback_of(mode, w)
    packed = []
    with saved_tensors_as_they_are(packed.append):
        hooked = case.ours(x, w, bias, feedback)
    plain = case.ours(x, w, bias, feedback)
    assert x.numel() in [tensor.numel() for tensor in packed]
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, w, bias), grad) for y in (hooked, plain)), strict=True):
        assert torch.equal(ours, theirs)
    if w.dim() > 2 and mode != "weight" and w.shape[2:].numel() > 1:
        assert [type(y.grad_fn).__name__ for y in (hooked, plain)] == ["_EagerConvBackward", "ConvolutionBackward0"]


@pytest.mark.parametrize("mode", MODES[1:])
@one_of_each
def test_what_b_is_made_of_must_not_change_before_the_backward_pass(case, mode):
    for changed in ("weight", "stored"):
        x, w, bias, grad = case.tensors()
        feedback, b = feedback_of(mode, w)
        y = case.ours(x, w, bias, feedback)
        with torch.no_grad():
            {"weight": w, "stored": feedback.stored}[changed].mul_(2)
        if changed == "weight" and mode == "stored" and w.dim() > 2:
            # Of no use to either gradient.
            assert_close(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(case.plain(x, b), x, grad)[0])
        elif changed == "weight" or mode.startswith("stored"):
            with pytest.raises(RuntimeError, match=r"in.?place"):
                torch.autograd.grad(y, x, grad)


@pytest.mark.parametrize("mode", ["stored", "sign", "stored_sign"])
def test_transforms_of_torch_func(mode):
    case = CASES["conv2d-groups"]
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of(mode, w)

    def loss(x, w, bias):
        return (case.ours(x, w, bias, feedback) * grad).sum()

    check(torch.func.grad(loss, (0, 1, 2))(x.detach(), w.detach(), bias.detach()), expected(case, x, w, bias, b, grad))


def test_a_convolution_whose_input_needs_no_gradient_advances_the_stream():
    case = CASES["conv2d-groups"]
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of("drawn_sign", w)
    own = torch.autograd.grad(case.ours(x.detach(), w, bias, feedback._replace(advance=True)), (w, bias), grad)
    check(own, expected(case, x, w, bias, b, grad)[1:])
    assert feedback.stream.tolist() == [3, 5]


# Registration and input checks


@pytest.mark.parametrize("advance", [False, True], ids=["still", "advance"])
@every_mode
@one_of_each
def test_opcheck(case, mode, advance):
    x, w, bias, _ = case.tensors(torch.float32)
    feedback, _ = feedback_of(mode, w)
    arguments = (x, w, bias, feedback.stored, feedback.stream, mode, 0.7, 0.3, advance)
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
    arguments = (grad, x, w, *feedback_of("stored_sign", w)[0][1:3], "stored_sign", 0.7, 0.3)
    tests = ("test_schema", "test_faketensor")
    if w.dim() == 2:
        op, geometry = torch.ops.bionas_fast.feedback_linear_backward.default, ()
    else:
        op, geometry = torch.ops.bionas_fast.feedback_conv_backward.default, ([2, 2], [1, 1], [1, 1], 2)
    torch.library.opcheck(op, (*arguments, *geometry, mask, "reference"), test_utils=tests)


@every_layout
@every_case
def test_fake_tensors_of_a_gpu(case, last, monkeypatch):
    """Shape, dtype and layout of every result, and no kernel is looked for, let alone launched.

    The backward op is called by itself: without a GPU, autograd does not start on fake tensors of one.
    """
    monkeypatch.delattr(feedback_library, "_triton")
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
        made = (stored, stream, "drawn_sign", 0.7, 0.3)
        grads = op(torch.empty_like(y), x, w, *made, *geometry, [True] * 3, backend)
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
