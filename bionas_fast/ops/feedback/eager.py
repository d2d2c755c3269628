"""The feedback ops without the dispatcher, which in eager mode costs more than a small layer.

Each function calls the registered op if a tracer is active. Otherwise autograd functions of this module run the same
implementations, or torch's own convolution runs and B is attached to its node.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bionas_fast import backends, torch_private
from bionas_fast.kernels.feedback.records import Advance, FeedbackSegments
from bionas_fast.ops.feedback import torch_library, transforms
from bionas_fast.ops.feedback.torch_library import (
    ConvArguments,
    LinearArguments,
    constant_b,
    gradients,
    make_b,
    save,
)


class _EagerConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments) -> Tensor:
        save(ctx, (input, weight, bias), arguments)
        return torch_library.conv(input, weight, bias, arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad, torch_library.conv_backward), None


class _EagerLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: LinearArguments) -> Tensor:
        save(ctx, (input, weight, bias), arguments)
        return torch_library.linear(input, weight, bias, arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad, torch_library.linear_backward), None


def _infers() -> bool:
    """Whether a graph for inference is made, which needs no B; a trace must be the same with and without gradients."""
    return not torch.is_grad_enabled() and not torch.jit.is_tracing()


def feedback_conv(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments) -> Tensor:
    """Run the op ``feedback_conv``."""
    if transforms.active():
        return transforms.feedback_layer(input, weight, bias, arguments)
    if backends.traced():
        if _infers():
            return arguments.plain(input, weight, bias)
        return torch.ops.bionas_fast.feedback_conv(input, weight, bias, *arguments.flat())
    return _EagerConv.apply(input, weight, bias, arguments)


def feedback_linear(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: LinearArguments) -> Tensor:
    """Run the op ``feedback_linear``."""
    if transforms.active():
        return transforms.feedback_layer(input, weight, bias, arguments)
    if backends.traced():
        if _infers():
            return arguments.plain(input, weight, bias)
        return torch.ops.bionas_fast.feedback_linear(input, weight, bias, *arguments.flat())
    return _EagerLinear.apply(input, weight, bias, arguments)


def feedback_segments(
    weight: Tensor,
    stored: Tensor | None,
    stream: Tensor | None,
    segments: FeedbackSegments,
    backend: str,
    advance: Advance | None = None,
) -> Tensor:
    """Run the op ``feedback_segments``; with it, streams of later passes may advance."""
    if backends.traced():
        if advance is not None:
            advance.apply()
        return torch.ops.bionas_fast.feedback_segments(weight, stored, stream, *segments, backend)
    return torch_library.segments(weight, stored, stream, segments, backend, advance)


def can_swap() -> bool:
    """Whether :func:`swap` is possible: no tracer, transform or saved-tensor hooks are active."""
    if backends.traced() or torch_private.has_saved_tensor_hooks() or torch_private.in_transform():
        return False
    return torch_private.can_replace_saved_weight()


def swap(output: Tensor, input: Tensor, weight: Tensor, arguments: ConvArguments) -> None:
    """Attach B instead of W to the node of torch's own convolution, at a tenth of the cost of a Python node."""
    feedback, _, backend = arguments
    mode, stored, stream, _, _, advance = feedback
    if mode == "drawn_sign" and stream is not None:
        feedback = feedback.at(stream.clone())
    version = torch_private.version
    reads_weight = mode != "stored"
    of_weight, of_stored = version(weight), None if stored is None else version(stored)
    needed, dtype = input.requires_grad, output.dtype

    def make(_: None) -> Tensor:
        changed = reads_weight and version(weight) != of_weight
        if changed or (stored is not None and version(stored) != of_stored):
            raise RuntimeError("the weight or its feedback was changed in place between forward and backward pass")
        b = weight.detach()
        if needed:
            b = make_b(b, feedback, backend)
        if advance and stream is not None:
            stream[1].add_(1)
        return b if b.dtype == dtype else b.to(dtype)

    def through_a_constant(grads: tuple[Tensor | None, ...], outer: tuple[Tensor, ...]) -> Any:
        """Under ``create_graph``, replace δ_in: torch's node takes B for W, and would differentiate W through it."""
        if not torch.is_grad_enabled() or (error := grads[0]) is None:
            return None
        b = constant_b(weight, feedback).to(dtype)
        down, *_ = arguments.plain_backward(outer[0], error.detach(), b, (True, False, False))
        return down, *grads[1:]

    node = output.grad_fn
    assert node is not None
    torch_private.replace_saved_weight(node, make)
    if needed and mode != "weight":
        node.register_hook(through_a_constant)
