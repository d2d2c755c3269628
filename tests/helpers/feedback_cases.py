"""Shapes, modes and expected gradients for the tests of the feedback ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.kernels.feedback import reference
from bionas_fast.ops.feedback import Feedback, feedback_conv, feedback_linear
from helpers.tolerances import assert_close

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
    """Hooks that change nothing; with them a Python autograd function runs, whose saved tensors pass through them."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: (seen(t), t)[1], lambda t: t)


def check(actual, wanted) -> None:
    for a, e in zip(actual, wanted, strict=True):
        assert_close(a, e, torch.float32 if a.dtype == torch.float32 else torch.float64)
