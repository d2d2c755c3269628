"""feedback_conv_transpose: transposed convolutions that propagate the error through B instead of W."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bionas_fast import backends, native
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.kernels.feedback.reference import Grads
from bionas_fast.kernels.window import Window
from bionas_fast.ops.feedback import torch_library, transforms
from bionas_fast.ops.feedback.torch_library import gradients, make_b, save

backends.declare("feedback_conv_transpose", native=native.obstacle)


class TransposeArguments(NamedTuple):
    """The non-tensor arguments of ``feedback_conv_transpose``."""

    feedback: Feedback
    window: Window
    output_padding: list[int]
    backend: str

    @classmethod
    def read(cls, flat: Sequence[Any]) -> TransposeArguments:
        """Build the record from the flat arguments of the schema."""
        return cls(Feedback(*flat[:6]), Window(*flat[6:10]), flat[10], flat[11])

    def flat(self) -> tuple[Any, ...]:
        """Flatten the record to the arguments of the schema."""
        return (*self.feedback, *self.window, self.output_padding, self.backend)

    def having(self, feedback: Feedback) -> TransposeArguments:
        """Return a copy with another feedback."""
        return self._replace(feedback=feedback)

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer in plain PyTorch."""
        return reference.conv_transpose(input, weight, bias, self.window, self.output_padding)

    def plain_backward(self, grad: Tensor, input: Tensor, b: Tensor, output_mask: Sequence[bool]) -> Grads:
        """Run the backward pass through B in plain PyTorch, which differentiates it."""
        return reference.conv_transpose_backward(grad, input, b, self.window, self.output_padding, output_mask)


def run(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: TransposeArguments) -> Tensor:
    """Run the op ``feedback_conv_transpose``."""
    if transforms.active():
        return transforms.feedback_layer(input, weight, bias, arguments)
    if backends.traced():
        return torch.ops.bionas_fast.feedback_conv_transpose(input, weight, bias, *arguments.flat())
    return _Eager.apply(input, weight, bias, arguments)


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: TransposeArguments) -> Tensor:
    return arguments.plain(input, weight, bias)


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, arguments: TransposeArguments, output_mask: Sequence[bool]
) -> Grads:
    # As in a convolution: one layout for both, and no feedback without δ_in.
    grad = grad.contiguous(memory_format=reference.layout(input))
    b = make_b(weight, arguments.feedback, arguments.backend) if output_mask[0] else weight
    grads = arguments.plain_backward(grad, input, b, output_mask)
    likes = (input, weight)
    laid_out = (
        g.contiguous(memory_format=reference.layout(like)) if wanted and g is not None else None
        for g, like, wanted in zip(grads, likes, output_mask, strict=False)
    )
    down, outer = laid_out
    return down, outer, grads[2] if output_mask[2] else None


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: TransposeArguments) -> Tensor:
        save(ctx, (input, weight, bias), arguments)
        return _forward(input, weight, bias, arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad, _backward), None


torch_library.register("feedback_conv_transpose", TransposeArguments, _forward, _backward)
_library = torch.library.Library("bionas_fast", "FRAGMENT")


@torch.library.register_fake("bionas_fast::feedback_conv_transpose", lib=_library)
def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, *flat: Any) -> Tensor:
    return _forward(input, weight, bias, TransposeArguments.read(flat))


@torch.library.register_fake("bionas_fast::feedback_conv_transpose_backward", lib=_library)
def _backward_fake(grad: Tensor, input: Tensor, weight: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    groups = flat[9]
    likes = (input, weight, weight.new_empty(weight.shape[1] * groups))
    return tuple(
        torch.empty_like(like, memory_format=reference.layout(like)) if wanted else grad.new_empty(0)
        for like, wanted in zip(likes, flat[-1], strict=True)
    )
