"""feedback_conv, feedback_linear and their direct variants: a layer whose error travels down through B instead of W."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bionas_fast import backends
from bionas_fast.errors import InputError, unknown
from bionas_fast.kernels.feedback import reference
from bionas_fast.ops.feedback import torch_library
from bionas_fast.ops.geometry import PerDimension, window
from bionas_fast.rules import MODES


class Feedback(NamedTuple):
    """How B is made; the fields are those of :func:`bionas_fast.kernels.feedback.reference.feedback_weight`.

    Attributes:
        advance: whether the backward pass moves ``stream`` on to the next draw when it is done.
    """

    mode: str = "weight"
    stored: Tensor | None = None
    stream: Tensor | None = None
    bound: float = 0.0
    scale: float = 0.0
    advance: bool = False


BACKPROPAGATION = Feedback()


def feedback_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    feedback: Feedback = BACKPROPAGATION,
    *,
    stride: PerDimension = 1,
    padding: PerDimension = 0,
    dilation: PerDimension = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Convolution in one to three dimensions whose error travels down through B (see ``rules``).

    Args:
        input: [N, C_in, *positions].
        weight: [C_out, C_in/groups, *kernel].
        bias: [C_out] or None.
        feedback: how B is made.
        backend: an explicit choice of implementation.

    Returns:
        [N, C_out, *positions]. Under autocast, in its dtype.

    Raises:
        InputError: shapes that do not fit, naming the argument; a mode without the tensor it reads.
    """
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        raise InputError(f"weight: expected 3 to 5 dimensions [C_out, C_in/groups, *kernel], got {list(weight.shape)}")
    if input.dim() != weight.dim():
        raise InputError(
            f"input: expected {weight.dim()} dimensions [N, C_in, *positions], got shape {list(input.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"groups: {groups} does not divide the {weight.shape[0]} output channels of weight")
    if input.shape[1] != weight.shape[1] * groups:
        raise InputError(
            f"input: expected {weight.shape[1] * groups} channels, got {input.shape[1]} in shape {list(input.shape)}"
        )
    _check_bias(bias, weight)
    _check_feedback(feedback, weight)
    steps, pads, spread = window(stride, padding, dilation, dims)
    if _is_linear(input, weight, pads, groups):
        return _position_by_position(input, weight, bias, feedback, steps, backend)
    geometry = (steps, pads, spread, groups)
    input, weight, bias = _autocast(input, weight, bias)
    chosen = backends.choose("feedback_conv", input.device.type, backend)
    if feedback.mode == "weight" and not feedback.advance and not _has_few_channels(input, weight):
        return reference.conv(input, weight, bias, *geometry)
    if can_swap(input, weight, groups, chosen):
        return with_feedback(reference.conv(input, weight, bias, *geometry), input, weight, feedback, chosen)
    return torch_library.feedback_conv(
        input,
        weight,
        bias,
        feedback.stored,
        feedback.stream,
        feedback.mode,
        feedback.bound,
        feedback.scale,
        feedback.advance,
        *geometry,
        chosen,
    )


def can_swap(input: Tensor, weight: Tensor, groups: int, backend: str | None = None) -> str:
    """Whether torch's own convolution of these may run, and :func:`with_feedback` see to its backward pass.

    Args:
        backend: an explicit choice of implementation.

    Returns:
        What is going to make B; empty where something else has to run.
    """
    outputs, inputs = weight.shape[:2]
    if input.dim() != weight.dim() or input.shape[1] != inputs * groups:
        return ""
    if (groups == 1 and weight.numel() == outputs * inputs) or not torch_library.is_plain():
        return ""
    chosen = backends.choose("feedback_conv", input.device.type, backend)
    return "" if chosen == "triton" else chosen


def with_feedback(output: Tensor, input: Tensor, weight: Tensor, feedback: Feedback, backend: str) -> Tensor:
    """What torch's own convolution gave, with B for its backward pass."""
    if output.requires_grad:
        if _has_few_channels(input, weight):
            output.register_hook(partial(_laid_out, layout=reference.layout(input)))
        if feedback.mode != "weight" or feedback.advance:
            torch_library.swap(output, input, weight, feedback, backend)
    return output


def _has_few_channels(input: Tensor, weight: Tensor) -> bool:
    """Whether a gradient whose layout differs from the input's makes oneDNN write beyond its buffers (torch 2.14)."""
    return min(input.shape[1], weight.shape[0]) < 4


def _laid_out(grad: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    return None if grad is None else grad.contiguous(memory_format=layout)


def _is_linear(input: Tensor, weight: Tensor, padding: Sequence[int], groups: int) -> bool:
    """Whether a convolution is a linear map of the channels, which lie side by side in memory."""
    if groups > 1 or any(padding) or weight.numel() != weight.shape[0] * weight.shape[1]:
        return False
    return input.movedim(1, -1).is_contiguous()


def _position_by_position(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    feedback: Feedback,
    stride: Sequence[int],
    backend: str | None,
) -> Tensor:
    """A 1×1 convolution as a matrix product, which is several times faster where channels come last."""
    taken = input[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]
    if feedback.stored is not None:
        feedback = feedback._replace(stored=feedback.stored.flatten(1))
    out = feedback_linear(taken.movedim(1, -1), weight.flatten(1), bias, feedback, backend=backend)
    return out.movedim(-1, 1)


def feedback_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    feedback: Feedback = BACKPROPAGATION,
    *,
    backend: str | None = None,
) -> Tensor:
    """Linear map whose error travels down through B (see ``rules``).

    Args:
        input: [..., in_features].
        weight: [out_features, in_features].
        bias: [out_features] or None.

    Returns:
        [..., out_features]. Under autocast, in its dtype.

    Raises:
        InputError: shapes that do not fit, naming the argument; a mode without the tensor it reads.
    """
    if weight.dim() != 2:
        raise InputError(f"weight: expected [out_features, in_features], got {list(weight.shape)}")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise InputError(f"input: expected [..., {weight.shape[1]}], got shape {list(input.shape)}")
    _check_bias(bias, weight)
    _check_feedback(feedback, weight)
    input, weight, bias = _autocast(input, weight, bias)
    chosen = backends.choose("feedback_linear", input.device.type, backend)
    if feedback.mode == "weight" and not feedback.advance:
        return reference.linear(input, weight, bias)
    return torch_library.feedback_linear(
        input,
        weight,
        bias,
        feedback.stored,
        feedback.stream,
        feedback.mode,
        feedback.bound,
        feedback.scale,
        feedback.advance,
        chosen,
    )


def direct_conv(
    input: Tensor,
    feedback: Tensor,
    output_size: Sequence[int],
    *,
    stride: PerDimension = 1,
    padding: PerDimension = 0,
    dilation: PerDimension = 1,
) -> Tensor:
    """The path by which the error at the logits reaches the input of a convolution under direct feedback alignment.

    Args:
        input: of the convolution, [N, C_in, *positions].
        feedback: B, [classes, C_in, *kernel].
        output_size: the convolution's output positions.

    Returns:
        Zeros [N, classes]. Added to the logits, they leave them as they are and bring their gradient e here, where
        ∂input = convᵀ(E; B) with E = e at every position.
    """
    dims = feedback.dim() - 2
    return torch.ops.bionas_fast.direct_conv(
        input,
        feedback.to(input.dtype),
        list(output_size),
        *window(stride, padding, dilation, dims),
    )


def direct_linear(input: Tensor, feedback: Tensor) -> Tensor:
    """As :func:`direct_conv`, for a linear layer: ∂input = e B.

    Args:
        input: [N, ..., in_features].
        feedback: B, [classes, in_features].
    """
    return torch.ops.bionas_fast.direct_linear(input, feedback.to(input.dtype))


class FeedbackSegments(NamedTuple):
    """Several layers' weights in one flat tensor: for each its length, and its ``mode``, ``bound`` and ``scale``."""

    lengths: tuple[int, ...]
    modes: tuple[str, ...]
    bounds: tuple[float, ...]
    scales: tuple[float, ...]


def feedback_segments(
    weight: Tensor, stored: Tensor | None, stream: Tensor | None, segments: FeedbackSegments
) -> Tensor:
    """B of every segment, flat; zeros where the mode is ``custom``.

    Args:
        weight: flat.
        stored: of the segments whose mode is ``stored`` or ``stored_sign``, one after the other; more may follow. None
            where there are none.
        stream: int64 [segments, 2], or None where no segment reads it.
    """
    chosen = backends.choose("feedback_segments", weight.device.type)
    return torch_library.feedback_segments(weight, stored, stream, *segments, chosen)


def feedback_weight(weight: Tensor, feedback: Feedback) -> Tensor:
    """B itself, shaped like ``weight``, detached from the graph."""
    _check_feedback(feedback, weight)
    return reference.feedback_weight(
        weight.detach(), feedback.stored, feedback.stream, feedback.mode, feedback.bound, feedback.scale
    )


def _check_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise InputError(f"bias: expected [{weight.shape[0]}], got {list(bias.shape)}")


def _check_feedback(feedback: Feedback, weight: Tensor) -> None:
    mode = feedback.mode
    if mode not in MODES or mode == "direct":
        raise unknown("mode", mode, MODES[:-1], "feedback")
    if mode.startswith("stored"):
        if feedback.stored is None:
            raise InputError(f"feedback: mode {mode!r} needs a stored tensor")
        if feedback.stored.shape != weight.shape:
            raise InputError(
                f"feedback: expected the weight's shape {list(weight.shape)}, got {list(feedback.stored.shape)}"
            )
    if mode == "drawn_sign" and feedback.stream is None:
        raise InputError("feedback: mode 'drawn_sign' needs a stream (seed, draw)")


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = input.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(input), cast(weight), None if bias is None else cast(bias)
