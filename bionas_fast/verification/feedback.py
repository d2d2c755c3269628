"""Checks of feedback weights, and of the layers that send their errors through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import Feedback, FeedbackSegments
from bionas_fast.kernels.window import Window
from bionas_fast.ops import feedback as ops
from bionas_fast.ops.feedback.torch_library import make_each_b
from bionas_fast.verification.bounds import rounding
from bionas_fast.verification.check import Check, Draw, Expected, Target

COMPUTED = ("sign", "stored_sign", "drawn_sign")
MODES = ("weight", "stored", *COMPUTED)
BOUND, SCALE = 0.37, 0.05
#: Seed and draw; both words of the seed are used.
STREAM = (0x1234567890, 3)


def _feedback(mode: str, stored: Tensor | None, stream: Tensor | None) -> Feedback:
    return Feedback(mode, stored if mode.startswith("stored") else None, stream, BOUND, SCALE)


def _drawn(draw: Draw, mode: str, *shape: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Draw a weight with zeros among its entries, a stored tensor if the mode reads one, and a stream."""
    stored = draw.normal(*shape) if mode.startswith("stored") else None
    return draw.coarse(*shape), stored, torch.tensor(STREAM, device=draw.device)


def segments(target: Target) -> Iterator[Check]:
    """Make the checks of B of many layers in one tensor."""
    sizes = (5000, 4096, 70001) if target.large else (1, 7, 33)
    modes = (*MODES, "custom")
    lengths = tuple(sizes[k % 3] + k for k in range(len(modes)))
    parts = FeedbackSegments(lengths, modes, (BOUND,) * len(modes), (SCALE,) * len(modes))
    draw, total = target.draw(), sum(lengths)
    stored = draw.normal(sum(own for own, mode in zip(lengths, modes, strict=True) if mode.startswith("stored")))
    streams = torch.tensor([(STREAM[0] + k, k) for k in range(len(modes))], device=draw.device)

    def run(weight: Tensor, stored: Tensor, streams: Tensor) -> list[Tensor]:
        return [ops.feedback_segments(weight, stored, streams, parts, backend=target.backend)]

    def expect(weight: Tensor, stored: Tensor, streams: Tensor) -> Expected:
        b = reference.feedback_segments(weight, stored, streams, parts)
        return Expected([b], [b.abs()], [rounding(target, 2)])

    yield Check("feedback segments", f"{total} weights", (draw.coarse(total), stored, streams), run, expect)
    if target.backend == "native":
        yield _each(target)


def _each(target: Target) -> Check:
    """The check of B of several tensors at once."""
    draw, shapes = target.draw(), ((5, 3, 3, 3), (70, 64, 1, 1), (1, 1))
    drawn = [(mode, *_drawn(draw, mode, *shape)) for shape in shapes for mode in COMPUTED]
    modes = [mode for mode, *_ in drawn]

    def feedback(stored: Sequence[Tensor | None], streams: Sequence[Tensor]) -> list[Feedback]:
        return [_feedback(*each) for each in zip(modes, stored, streams, strict=True)]

    def run(weights: list[Tensor], stored: list[Tensor | None], streams: list[Tensor]) -> list[Tensor]:
        return make_each_b(weights, feedback(stored, streams))

    def expect(weights: list[Tensor], stored: list[Tensor | None], streams: list[Tensor]) -> Expected:
        each = zip(weights, feedback(stored, streams), strict=True)
        b = [reference.feedback_weight(weight, own) for weight, own in each]
        return Expected(b, [own.abs() for own in b], [rounding(target, 2)] * len(b))

    _, *columns = zip(*drawn, strict=True)
    return Check("feedback weights", f"{len(drawn)} tensors", tuple(map(list, columns)), run, expect)


@dataclass(frozen=True)
class Layer:
    """A layer: the shapes of its input and its weight, and its geometry.

    Attributes:
        window: None for a linear layer.
        output_padding: of a transposed convolution; None for any other.
        last: whether the input is channels_last.
    """

    input: tuple[int, ...]
    weight: tuple[int, ...]
    window: Window | None = None
    output_padding: tuple[int, ...] | None = None
    last: bool = False

    @property
    def text(self) -> str:
        """The shapes and the geometry in words."""
        words = ["x".join(map(str, self.input)), "weight", "x".join(map(str, self.weight))]
        if self.window is not None:
            names = ("stride", "padding", "dilation")
            plain = ((1,), (0,), (1,))
            for name, own, usual in zip(names, self.window[:3], plain, strict=True):
                words += [name, str(own[0])] if {*own} != {*usual} else []
            words += ["groups", str(self.window.groups)] if self.window.groups > 1 else []
        return " ".join([*words, *(["channels_last"] if self.last else [])])

    @property
    def terms(self) -> int:
        """A bound of the number of terms of any sum of a pass: those of an output, of an error, of a gradient."""
        rows = 1
        for size in (self.input[0], *(self.input[2:] if self.window else self.input[1:-1])):
            rows *= size
        stride = max(self.window.stride) ** 2 if self.window and self.output_padding is not None else 1
        taps = 1
        for size in self.weight[2:]:
            taps *= size
        return max(rows * stride, max(self.weight[:2]) * taps) + 1

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the output in plain PyTorch."""
        if self.window is None:
            return reference.linear(x, weight, bias)
        if self.output_padding is not None:
            return reference.conv_transpose(x, weight, bias, self.window, self.output_padding)
        return reference.conv(x, weight, bias, self.window)

    def backward(self, grad: Tensor, x: Tensor, b: Tensor) -> list[Tensor]:
        """Compute the error and the gradients of weight and bias in plain PyTorch."""
        mask = [True, True, True]
        if self.window is None:
            grads = reference.linear_backward(grad, x, b, mask)
        elif self.output_padding is not None:
            grads = reference.conv_transpose_backward(grad, x, b, self.window, self.output_padding, mask)
        else:
            grads = reference.conv_backward(grad, x, b, self.window, mask)
        return [own for own in grads if own is not None]

    def run(self, x: Tensor, weight: Tensor, bias: Tensor, feedback: Feedback, backend: str) -> Tensor:
        """Compute the output by the op."""
        if self.window is None:
            return ops.feedback_linear(x, weight, bias, feedback, backend=backend)
        stride, padding, dilation, groups = self.window
        geometry: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        if self.output_padding is not None:
            return ops.feedback_conv_transpose(
                x, weight, bias, feedback, output_padding=self.output_padding, backend=backend, **geometry
            )
        return ops.feedback_conv(x, weight, bias, feedback, backend=backend, **geometry)


def _window(dims: int = 2, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Window:
    return Window([stride] * dims, [padding] * dims, [dilation] * dims, groups)


ODD = {
    "linear": (Layer((1, 1), (1, 1)), Layer((5, 7), (3, 7)), Layer((2, 3, 33), (70, 33))),
    "conv": (
        Layer((2, 5, 7, 9), (6, 5, 3, 3), _window(padding=1)),
        Layer((2, 6, 7, 9), (4, 3, 3, 3), _window(stride=2, padding=1, groups=2)),
        Layer((2, 5, 7, 4), (5, 1, 5, 5), _window(padding=4, dilation=2, groups=5)),
        Layer((2, 5, 7, 4), (5, 1, 3, 3), _window(stride=2, padding=1, groups=5), last=True),
        Layer((3, 5, 7, 9), (35, 5, 1, 1), _window()),
        Layer((3, 5, 7, 9), (6, 5, 1, 1), _window(stride=2)),
        Layer((3, 5, 7, 9), (6, 5, 1, 1), _window(), last=True),
        Layer((2, 4, 9), (5, 4, 3), _window(1, padding=1)),
        Layer((2, 4, 3, 4, 5), (5, 4, 3, 3, 3), _window(3, padding=1)),
    ),
    "conv_transpose": (
        Layer((2, 5, 4, 3), (5, 6, 3, 3), _window(stride=2, padding=1), (1, 1)),
        Layer((2, 6, 4, 3), (6, 2, 3, 3), _window(groups=2), (0, 0)),
    ),
}
REAL = {
    "linear": (Layer((256, 512), (1000, 512)),),
    "conv": (
        Layer((64, 64, 16, 16), (64, 64, 3, 3), _window(padding=1)),
        Layer((64, 48, 32, 32), (96, 48, 1, 1), _window()),
        Layer((64, 48, 32, 32), (96, 48, 1, 1), _window(), last=True),
        Layer((64, 36, 32, 32), (36, 1, 5, 5), _window(padding=2, groups=36)),
    ),
    "conv_transpose": (Layer((16, 32, 8, 8), (32, 16, 3, 3), _window(stride=2, padding=1), (1, 1)),),
}


def layers(kind: str) -> Callable[[Target], Iterator[Check]]:
    """Return the function that makes the checks of a kind of layers: ``linear``, ``conv`` or ``conv_transpose``."""

    def made(target: Target) -> Iterator[Check]:
        for layer in (REAL if target.large else ODD)[kind]:
            for mode in COMPUTED if target.dtype == "float32" else ("drawn_sign",):
                yield _layer(target, layer, mode)

    return made


def _layer(target: Target, layer: Layer, mode: str) -> Check:
    """The check of a layer's output and gradients."""
    draw = target.draw()
    x, (weight, stored, stream) = draw.normal(*layer.input), _drawn(draw, mode, *layer.weight)
    if layer.last:
        x = x.contiguous(memory_format=torch.channels_last)
    transposed = layer.output_padding is not None and layer.window is not None
    groups = layer.window.groups if layer.window is not None else 1
    bias = draw.normal(layer.weight[1] * groups if transposed else layer.weight[0])
    grad = draw.normal(*layer.forward(x.double(), weight.double(), bias.double()).shape)

    def run(
        x: Tensor, weight: Tensor, bias: Tensor, stored: Tensor | None, stream: Tensor, grad: Tensor
    ) -> Sequence[Tensor]:
        x, weight, bias = (own.detach().requires_grad_() for own in (x, weight, bias))
        out = layer.run(x, weight, bias, _feedback(mode, stored, stream), target.backend)
        return [out.detach(), *torch.autograd.grad(out, (x, weight, bias), grad)]

    def expect(
        x: Tensor, weight: Tensor, bias: Tensor, stored: Tensor | None, stream: Tensor, grad: Tensor
    ) -> Expected:
        b = reference.feedback_weight(weight, _feedback(mode, stored, stream))
        values = [layer.forward(x, weight, bias), *layer.backward(grad, x, b)]
        whole = [own.abs() for own in (x, weight, bias, grad, b)]
        scales = [layer.forward(*whole[:3]), *layer.backward(whole[3], whole[0], whole[4])]
        # Fast algorithms of libraries for convolutions spread rounding over a tensor.
        scales = [own.max() for own in scales]
        return Expected(values, scales, [rounding(target, layer.terms, 3)] * 4)

    given = (x, weight, bias, stored, stream, grad)
    return Check(f"feedback layer, {mode}", layer.text, given, run, expect)
