"""The feedback ops within graphs: draws, several passes, checkpointing, hooks, transforms; and whose node runs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bionas_fast import backends, use_backend
from bionas_fast.nn import Linear
from helpers.feedback_cases import (
    CASES,
    MODES,
    check,
    every_case,
    every_mode,
    expected,
    feedback_of,
    one_of_each,
    saved_tensors_as_they_are,
)
from helpers.tolerances import assert_close


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
        if changed == "weight" and mode == "stored":
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


def test_a_compiled_graph_follows_the_choice_of_backend():
    torch._dynamo.reset()  # it skips code that it once failed to compile in this process
    layer, x, graphs = Linear(3, 2, rule="usf"), torch.randn(4, 3), []

    def record(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(str(graph.code))
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=record)
    for name in ("reference", None, "reference"):
        with use_backend(name) if name else nullcontext():
            compiled(x)
    own = backends.choose("feedback_linear", "cpu")
    assert ["'reference'" in code for code in graphs] == ([True] if own == "reference" else [True, False])


def test_a_backend_is_chosen_inside_a_compiled_function():
    layer, x = Linear(3, 2, rule="usf"), torch.randn(4, 3)

    def run(x: torch.Tensor) -> torch.Tensor:
        with use_backend("reference"):
            return layer(x)

    graphs = []
    backend = lambda graph, _: (graphs.append(str(graph.code)), graph)[1]  # noqa: E731
    assert torch.equal(torch.compile(run, fullgraph=True, backend=backend)(x), layer(x))
    assert "'reference'" in graphs[0]
    assert backends._thread.chosen.backend is None


@every_mode
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_function_keeps_the_feedback(mode):
    case = CASES["conv2d-groups"]
    x, w, bias, grad = case.tensors()
    feedback, b = feedback_of(mode, w)
    traced = torch.jit.trace(lambda x, w, bias: case.ours(x, w, bias, feedback), (x, w, bias))
    made = torch.autograd.grad(traced(x, w, bias), (x, w, bias), grad)
    for actual, wanted in zip(made, expected(case, x, w, bias, b, grad), strict=True):
        assert_close(actual, wanted, torch.float32)  # draws are float32
