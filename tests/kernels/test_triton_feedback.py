"""The Triton kernels of feedback weights against the specification, on the CPU under Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

import bionas_fast as bf
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import Advance, Feedback, FeedbackSegments
from bionas_fast.kernels.window import Window
from helpers.interpreter import (
    INTERPRETED,
    assert_near,
    by_name,
    every_dtype,
    listed,
    record_launches,
    run_compiled,
    some_of,
    strided,
)

if INTERPRETED:
    from bionas_fast.kernels.feedback import triton as kernels

Grads = tuple[Tensor, ...]


@pytest.mark.slow
def test_compiled_on_a_card(cuda):
    run_compiled(__file__)


@dataclass
class Case:
    """Shapes and geometry of a layer; a weight of two dimensions is a linear map."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def geometry(self) -> tuple[Window, ...]:
        window = Window([*self.stride], [*self.padding], [*self.dilation], self.groups)
        return (window,) if len(self.weight) > 2 else ()

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A gradient of the output, input, weight (some of it zero) and stored tensor."""
        torch.manual_seed(0)
        x, w, stored = torch.randn(self.input), torch.randn(self.weight), torch.randn(self.weight)
        w[torch.rand(w.shape) < 0.1] = 0
        forward = reference.conv if self.geometry else reference.linear
        grad = torch.randn(forward(x, w, None, *self.geometry).shape)
        return grad.to(dtype), x.to(dtype), w.to(dtype), stored.to(dtype)

    def ours(self, grad: Tensor, x: Tensor, w: Tensor, feedback: Feedback, mask: tuple = (True, True, True)) -> Grads:
        run = kernels.conv_backward if self.geometry else kernels.linear_backward
        return run(grad, x, w, feedback, *self.geometry, mask)

    def wanted(self, grad: Tensor, x: Tensor, w: Tensor, feedback: Feedback) -> Grads:
        """B rounded as the weight's dtype does, everything else in float64."""
        run = reference.conv_backward if self.geometry else reference.linear_backward
        b = reference.feedback_weight(w, feedback).double()
        return run(grad.double(), x.double(), b, *self.geometry, [True, True, True])


LINEAR = {
    "one": Case((1, 1), (1, 1)),
    "vector": Case((5,), (3, 5)),
    "odd": Case((2, 5, 33), (7, 33)),
    "whole-blocks": Case((128, 64), (64, 64)),
    "many-outputs": Case((70, 67), (67, 67)),
    "many-rows": Case((300, 3), (5, 3)),
    "many-inputs": Case((3, 300), (2, 300)),
    "no-rows": Case((0, 5), (3, 5)),
    "no-inputs": Case((4, 0), (3, 0)),
    "no-outputs": Case((4, 3), (0, 3)),
}
POINTWISE = {
    "one": Case((1, 1, 1, 1), (1, 1, 1, 1)),
    "odd": Case((3, 5, 7, 9), (11, 5, 1, 1)),
    "many-outputs": Case((2, 17, 5, 3), (67, 17, 1, 1)),
    "one-position": Case((5, 6, 1, 1), (7, 6, 1, 1)),
    "stride": Case((2, 5, 8, 9), (3, 5, 1, 1), stride=(2, 3)),
    "no-images": Case((0, 3, 4, 4), (5, 3, 1, 1)),
}
DEPTHWISE = {
    "one": Case((1, 1, 1, 1), (1, 1, 3, 3), padding=(1, 1)),
    "3x3": Case((2, 3, 7, 5), (3, 1, 3, 3), padding=(1, 1), groups=3),
    "strided": Case((2, 2, 4, 5), (2, 1, 3, 3), stride=(2, 2), padding=(1, 1), groups=2),
    "many-positions": Case((1, 2, 23, 29), (2, 1, 2, 1), groups=2),
    "dilated": Case((1, 2, 5, 5), (2, 1, 5, 5), padding=(4, 4), dilation=(2, 2), groups=2),
    "unlike-axes": Case((2, 3, 9, 12), (3, 1, 2, 3), (3, 2), (0, 3), (1, 2), 3),
    "padding-beyond-kernel": Case((1, 2, 3, 3), (2, 1, 2, 2), padding=(3, 3), groups=2),
    "1x1": Case((2, 4, 5, 5), (4, 1, 1, 1), stride=(2, 1), groups=4),
    "no-images": Case((0, 4, 5, 5), (4, 1, 3, 3), groups=4),
}
DENSE = {
    "3x3": Case((2, 3, 6, 7), (5, 3, 3, 3), (2, 1), (1, 1)),
    "1x1-padded": Case((2, 3, 4, 4), (5, 3, 1, 1), padding=(1, 0)),
    "1x1-groups": Case((2, 6, 4, 4), (4, 3, 1, 1), groups=2),
    "multiplier": Case((2, 3, 6, 6), (6, 1, 3, 3), groups=3),
    "conv1d": Case((2, 3, 9), (4, 3, 3), (2,), (1,), (1,)),
    "conv3d": Case((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), (1, 2, 1), (1, 0, 1), (1, 1, 1)),
}
GROUPS = {"linear": LINEAR, "pointwise": POINTWISE, "depthwise": DEPTHWISE, "dense": DENSE}
CASES = {f"{group}-{name}": case for group, cases in GROUPS.items() for name, case in cases.items()}
ODD = {group: next(iter([*cases.values()][1:])) for group, cases in GROUPS.items()}
ODD_NAMES = [name for name, case in CASES.items() if case in ODD.values()]
IMAGES = {name: case for name, case in CASES.items() if len(case.input) == 4}
#: Where the channels come last, a program has several of them.
MANY_CHANNELS = Case((2, 33, 4, 5), (33, 1, 3, 3), stride=(2, 2), padding=(1, 1), groups=33)
MODES = ("weight", "stored", "sign", "stored_sign", "drawn_sign")
MADE = ("sign", "stored_sign", "drawn_sign")
SEEDS = {"0": 0, "7": 7, "high-word": 5 << 32 | 9, "2**63": -(2**63), "2**64-1": -1}


every_mode = pytest.mark.parametrize("mode", MODES)
every_made_mode = pytest.mark.parametrize("mode", MADE)


def feedback_of(mode: str, stored: Tensor, seed: int = 3, draw: int = 4) -> Feedback:
    """The construction of B, without what the mode does not read."""
    stream = torch.tensor([seed, draw]) if mode == "drawn_sign" else None
    return Feedback(mode, stored if mode.startswith("stored") else None, stream, 0.3, 0.1)


def assert_grads(ours: Grads, wanted: Grads, dtype: torch.dtype) -> None:
    assert {gradient.dtype for gradient in ours} <= {dtype}
    assert_near(ours, wanted, dtype)


@by_name("case", CASES)
def interpreted_backward(case: Case):
    """In the mode that reads most: kernels differ in nothing else between modes than in how they make B."""
    grad, x, w, stored = case.tensors()
    feedback = feedback_of("stored_sign", stored)
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@every_dtype
@every_mode
@by_name("case", some_of(CASES, *ODD_NAMES, "pointwise-many-outputs"))
def interpreted_backward_in_every_mode(case: Case, mode: str, dtype: torch.dtype):
    grad, x, w, stored = case.tensors(dtype)
    feedback = feedback_of(mode, stored)
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), dtype)


#: On processors without AVX-512, convolution_backward of PyTorch 2.14 writes beyond its memory for a strided 1×1
#: convolution on float32 channels_last tensors; with torch.backends.mkldnn switched off it does not.
UNSAFE = {"pointwise-stride"} if torch.backends.cpu.get_cpu_capability() == "AVX2" else set()


LAST = {name: (case, "stored_sign") for name, case in IMAGES.items() if name not in UNSAFE} | {
    f"{group}-{mode}": (ODD[group], mode) for group, mode in product(("pointwise", "depthwise", "dense"), MODES)
}


@by_name("case_and_mode", LAST | {"many-channels": (MANY_CHANNELS, "drawn_sign")})
def interpreted_channels_last(case_and_mode: tuple[Case, str]):
    case, mode = case_and_mode
    grad, x, w, stored = (t.to(memory_format=torch.channels_last) for t in case.tensors())
    feedback = feedback_of(mode, stored)
    ours = case.ours(grad, x, w, feedback)
    assert_grads(ours, case.wanted(grad, x, w, feedback), x.dtype)
    if x.numel():
        assert ours[0].is_contiguous(memory_format=torch.channels_last)


@by_name("case", ODD)
def interpreted_strided(case: Case):
    grad, x, w, stored = (strided(t) for t in case.tensors())
    feedback = feedback_of("stored_sign", stored)
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@by_name("case", ODD)
def interpreted_transposed(case: Case):
    grad, x, w, stored = (t.transpose(0, -1).contiguous().transpose(0, -1) for t in case.tensors())
    feedback = feedback_of("stored_sign", stored)
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@by_name("case", ODD)
def interpreted_gradient_of_a_sum(case: Case):
    grad, x, w, stored = case.tensors()
    grad, feedback = torch.tensor(0.7).expand(grad.shape), feedback_of("stored_sign", stored)
    assert set(grad.stride()) == {0}
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@every_made_mode
@by_name("case", {"linear": LINEAR["many-rows"], "streamed": POINTWISE["many-outputs"]})
def interpreted_few_programs_for_many_rows(case: Case, mode: str, monkeypatch):
    monkeypatch.setattr(kernels, "RESIDENT_PROGRAMS", 2)
    monkeypatch.setattr(kernels, "GRID_LIMIT", 1)
    grad, x, w, stored = case.tensors()
    feedback = feedback_of(mode, stored)
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@pytest.mark.parametrize("limit", ["ROW_LIMIT", "BLOCK_STRIDE_LIMIT", "GRID_LIMIT"])
@by_name("case", ODD)
def interpreted_beyond_a_limit(case: Case, limit: str, monkeypatch):
    monkeypatch.setattr(kernels, limit, 2)
    grad, x, w, stored = case.tensors()
    feedback = feedback_of("drawn_sign", stored)
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@pytest.mark.parametrize("mask", list(product((True, False), repeat=3)), ids=str)
@by_name("case", ODD)
def interpreted_only_what_is_asked_for(case: Case, mask: tuple[bool, ...]):
    grad, x, w, stored = case.tensors()
    feedback = feedback_of("stored_sign", stored)
    ours = case.ours(grad, x, w, feedback, mask)
    assert [g is not None for g in ours] == [*mask]
    kept = [(a, b) for a, b in zip(ours, case.wanted(grad, x, w, feedback), strict=True) if a is not None]
    assert_grads(*zip(*kept, strict=True) if kept else ((), ()), x.dtype)


@every_made_mode
@by_name("case", {name: case for name, case in ODD.items() if name != "dense"})
def interpreted_fused_without_b_in_memory(case: Case, mode: str, monkeypatch):
    grad, x, w, stored = case.tensors()
    monkeypatch.delattr(kernels, "feedback_weight")
    assert case.ours(grad, x, w, feedback_of(mode, stored))[0].shape == x.shape


DRAWS = (0, 1, 2**32 - 1, 2**32 + 5)


@by_name("seed", SEEDS)
@pytest.mark.parametrize("draw", DRAWS)
@every_dtype
def interpreted_same_bits(dtype: torch.dtype, draw: int, seed: int):
    _, _, w, stored = Case((1, 35), (20, 35)).tensors(dtype)
    feedback = feedback_of("drawn_sign", stored, seed, draw)
    assert torch.equal(kernels.feedback_weight(w, feedback), reference.feedback_weight(w, feedback))


@pytest.mark.parametrize(("seed", "draw"), [*zip(SEEDS.values(), (*DRAWS, 4), strict=True)], ids=[*SEEDS])
@every_dtype
def interpreted_same_bits_from_every_kernel(dtype: torch.dtype, draw: int, seed: int):
    """A unit error reaches the input as B itself."""
    for shape in ((20, 35), (67, 33)):  # B made once for all rows, and block by block
        linear = Case(shape, shape)
        _, _, w, stored = linear.tensors(dtype)
        feedback = feedback_of("drawn_sign", stored, seed, draw)
        b = reference.feedback_weight(w, feedback)
        assert torch.equal(linear.ours(torch.eye(shape[0], dtype=dtype), w, w, feedback)[0], b)
    depthwise = Case((1, 2, 2, 3), (2, 1, 2, 3), groups=2)
    _, x, w, stored = depthwise.tensors(dtype)
    feedback = feedback_of("drawn_sign", stored, seed, draw)
    down = depthwise.ours(torch.ones(1, 2, 1, 1, dtype=dtype), x, w, feedback, (True, False, False))[0]
    assert torch.equal(down[0].unsqueeze(1), reference.feedback_weight(w, feedback))


@every_mode
@every_dtype
@pytest.mark.parametrize(
    "shape", [(1,), (0, 3), (2049,), (7, 33), (5, 4, 3), (5, 4, 3, 2), (3, 4, 2, 3, 2), (3, 0, 2, 2)], ids=str
)
def interpreted_weight(shape: tuple[int, ...], dtype: torch.dtype, mode: str):
    torch.manual_seed(0)
    w, stored = torch.randn(shape).to(dtype), torch.randn(shape)
    feedback = feedback_of(mode, stored)
    b = reference.feedback_weight(w, feedback)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
    for weight in (w, w.to(memory_format=last), strided(w)):
        ours = kernels.feedback_weight(weight, feedback)
        torch.testing.assert_close(ours, b, rtol=0, atol=0, equal_nan=False)
    if w.numel() and mode in MADE:
        assert kernels.feedback_weight(w.to(memory_format=last), feedback).is_contiguous(memory_format=last)


SEGMENTS = {
    "every-mode": ("drawn_sign", "weight", "custom", "stored", "sign", "stored_sign", "drawn_sign"),
    "one": ("drawn_sign",),
    "nothing-to-read": ("weight", "sign"),
}


@every_dtype
@by_name("modes", SEGMENTS)
def interpreted_segments(modes: tuple[str, ...], dtype: torch.dtype):
    torch.manual_seed(0)
    lengths = (300, 1, 7, 256, 33, 0, 600)[: len(modes)]
    w = torch.randn(sum(lengths)).to(dtype)
    stored = torch.randn(sum(length for length, mode in zip(lengths, modes, strict=True) if mode.startswith("stored")))
    w[::5] = 0
    stream = torch.arange(2 * len(modes)).view(-1, 2) - 3
    reads = (len(stored) > 0, "drawn_sign" in modes)
    optional = tuple(t if read else None for t, read in zip((stored, stream), reads, strict=True))
    numbers = (tuple(0.1 * k + 0.1 for k in range(len(modes))), tuple(0.3 * k + 0.1 for k in range(len(modes))))
    segments = FeedbackSegments(lengths, modes, *numbers)
    b = reference.feedback_segments(w, *optional, segments)
    assert torch.equal(kernels.feedback_segments(w, *optional, segments), b)
    gaps = tuple(None if t is None else t.repeat_interleave(2, 0)[::2] for t in (w, *optional))
    following, steps = stream + 5, torch.arange(2 * len(modes)).view(-1, 2)
    assert torch.equal(kernels.feedback_segments(*gaps, segments, Advance(following, steps)), b)
    assert torch.equal(following, stream + 5 + steps)


def interpreted_segments_of_nothing_and_of_float64():
    nothing = torch.empty(0)
    assert kernels.feedback_segments(nothing, None, None, FeedbackSegments((), (), (), ())).shape == (0,)
    w = torch.randn(3, dtype=torch.float64)
    segments = FeedbackSegments((3,), ("sign",), (0.0,), (1 / 3,))
    assert torch.equal(kernels.feedback_segments(w, None, None, segments), w.sign() / 3)


@every_made_mode
@by_name("case", ODD)
def interpreted_float64_as_the_reference(case: Case, mode: str):
    grad, x, w, stored = case.tensors(torch.float64)
    feedback = feedback_of(mode, stored)
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@by_name("case", ODD)
def interpreted_float32_magnitudes_beside_float16(case: Case):
    grad, x, w, _ = case.tensors(torch.float16)
    feedback = feedback_of("stored_sign", torch.randn(w.shape))
    assert_grads(case.ours(grad, x, w, feedback), case.wanted(grad, x, w, feedback), x.dtype)


@every_made_mode
def interpreted_signs_of_zero_and_not_a_number(mode: str):
    w = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45])
    feedback = feedback_of(mode, torch.randn(6))
    torch.testing.assert_close(
        kernels.feedback_weight(w, feedback), reference.feedback_weight(w, feedback), rtol=0, atol=0
    )


def interpreted_every_configuration_is_launched(monkeypatch):
    """The cases above launch exactly the configurations that are compiled ahead of time."""
    launched = record_launches(kernels, monkeypatch)
    for case, mode, dtype in product(CASES.values(), MADE, kernels.DTYPES):
        grad, x, w, stored = case.tensors(dtype)
        for last in (False, True) if len(case.input) == 4 else (False,):
            layout = torch.channels_last if last else torch.contiguous_format
            for precision in ("ieee", "tf32"):
                with bf.precision(precision):
                    images = x.contiguous(memory_format=layout)
                    case.ours(grad, images, w, feedback_of(mode, stored), (True, False, False))
    segments = FeedbackSegments((2,), ("sign",), (0.0,), (1.0,))
    for dtype in kernels.DTYPES:
        kernels.feedback_segments(torch.ones(2, dtype=dtype), None, None, segments)
        advance = Advance(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64))
        kernels.feedback_segments(torch.ones(2, dtype=dtype), None, None, segments, advance)
    monkeypatch.undo()
    assert launched == listed(kernels)
