"""feedback_conv, feedback_conv_transpose, feedback_linear and their direct variants.

These layers propagate the error through B instead of W.

The functions here validate and choose a backend. :mod:`.eager` bypasses the dispatcher where possible,
:mod:`.torch_library` registers and implements the ops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bionas_fast import backends, torch_private
from bionas_fast.errors import InputError, ShapeError, unknown
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import MODES, Advance, Feedback, FeedbackSegments
from bionas_fast.kernels.window import Window
from bionas_fast.ops.feedback import conv_transpose, counts, direct, eager
from bionas_fast.ops.feedback.conv_transpose import TransposeArguments
from bionas_fast.ops.feedback.eager import feedback_segments as run_feedback_segments
from bionas_fast.ops.feedback.torch_library import ConvArguments, LinearArguments
from bionas_fast.ops.geometry import Geometry, PerDimension, per_dimension, window

if TYPE_CHECKING:
    from typing_extensions import Unpack

BACKPROPAGATION = Feedback()


def feedback_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    feedback: Feedback = BACKPROPAGATION,
    *,
    backend: str | None = None,
    **geometry: Unpack[Geometry],
) -> Tensor:
    """Convolve in one to three dimensions, with the error propagated through B (see ``rules``).

    Args:
        input: [N, C_in, *positions].
        weight: [C_out, C_in/groups, *kernel].
        bias: [C_out] or None.
        feedback: the construction of B.
        backend: an explicit choice of implementation.
        geometry: stride, padding, dilation and groups of the convolution, as in ``torch.nn.functional.conv2d``.

    Returns:
        [N, C_out, *positions]. Under autocast, in its dtype.

    Raises:
        InputError: mismatched shapes (the message names the argument); a mode without the tensor it reads; complex
            numbers with feedback other than W.
    """
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        raise ShapeError(f"weight: expected 3 to 5 dimensions [C_out, C_in/groups, *kernel], got {list(weight.shape)}")
    if input.dim() != weight.dim():
        raise ShapeError(
            f"input: expected {weight.dim()} dimensions [N, C_in, *positions], got shape {list(input.shape)}"
        )
    shape = window(dims, **geometry)
    groups = shape.groups
    if groups < 1 or weight.shape[0] % groups:
        raise ShapeError(f"groups: {groups} does not divide the {weight.shape[0]} output channels of weight")
    if input.shape[1] != weight.shape[1] * groups:
        raise ShapeError(
            f"input: expected {weight.shape[1] * groups} channels, got {input.shape[1]} in shape {list(input.shape)}"
        )
    _check_bias(bias, weight)
    _check_feedback(feedback, weight)
    if _is_linear(input, weight, shape):
        return _position_by_position(input, weight, bias, feedback, shape.stride, backend)
    input, weight, bias = _autocast(input, weight, bias)
    chosen = backends.choose("feedback_conv", input.device.type, backend)
    propagates = feedback.mode == "weight" and not feedback.advance
    if propagates and (not _has_few_channels(input, weight) or backends.recorded()):
        return reference.conv(input, weight, bias, shape)
    arguments = ConvArguments(feedback, shape, chosen)
    if can_swap(input, weight, groups, chosen):
        return with_feedback(reference.conv(input, weight, bias, shape), input, weight, arguments)
    return eager.feedback_conv(input, weight, bias, arguments)


def feedback_conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    feedback: Feedback = BACKPROPAGATION,
    *,
    output_padding: PerDimension = 0,
    backend: str | None = None,
    **geometry: Unpack[Geometry],
) -> Tensor:
    """Apply a transposed convolution in one to three dimensions, with the error propagated through B.

    The error is δ_in = B ⋆ δ_out, a convolution with the same geometry.

    Args:
        input: [N, C_in, *positions].
        weight: [C_in, C_out/groups, *kernel].
        bias: [C_out] or None.
        feedback: the construction of B, shaped like ``weight``.
        output_padding: as in ``torch.nn.functional.conv_transpose2d``.
        backend: an explicit choice of implementation.
        geometry: stride, padding, dilation and groups, as there.

    Returns:
        [N, C_out, *positions]. Under autocast, in its dtype.

    Raises:
        InputError: mismatched shapes (the message names the argument); a mode without the tensor it reads; complex
            numbers with feedback other than W.
    """
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        raise ShapeError(f"weight: expected 3 to 5 dimensions [C_in, C_out/groups, *kernel], got {list(weight.shape)}")
    if input.dim() != weight.dim() or input.shape[1] != weight.shape[0]:
        raise ShapeError(
            f"input: expected {weight.dim()} dimensions [N, {weight.shape[0]}, *positions], got shape "
            f"{list(input.shape)}"
        )
    shape = window(dims, **geometry)
    extra = per_dimension("output_padding", output_padding, dims)
    if shape.groups < 1 or weight.shape[0] % shape.groups:
        raise ShapeError(f"groups: {shape.groups} does not divide the {weight.shape[0]} input channels of weight")
    if bias is not None and tuple(bias.shape) != (weight.shape[1] * shape.groups,):
        raise ShapeError(f"bias: expected [{weight.shape[1] * shape.groups}], got {list(bias.shape)}")
    _check_feedback(feedback, weight)
    input, weight, bias = _autocast(input, weight, bias)
    chosen = backends.choose("feedback_conv_transpose", input.device.type, backend)
    if feedback.mode == "weight" and not feedback.advance:
        return reference.conv_transpose(input, weight, bias, shape, extra)
    return conv_transpose.run(input, weight, bias, TransposeArguments(feedback, shape, extra, chosen))


def can_swap(input: Tensor, weight: Tensor, groups: int, backend: str | None = None) -> str:
    """Choose the backend of B if torch's own convolution can run, with :func:`with_feedback` for its backward pass.

    Args:
        backend: an explicit choice of implementation.

    Returns:
        The backend; empty if torch's own convolution cannot be used.
    """
    _, inputs, *kernel = weight.shape
    if input.dim() != weight.dim() or input.shape[1] != inputs * groups:
        return ""
    if (groups == 1 and kernel.count(1) == len(kernel)) or not eager.can_swap():
        return ""
    chosen = backends.choose("feedback_conv", input.device.type, backend)
    return "" if chosen == "triton" else chosen


def with_feedback(output: Tensor, input: Tensor, weight: Tensor, arguments: ConvArguments) -> Tensor:
    """Attach B to the output of torch's own convolution, for its backward pass."""
    if output.requires_grad:
        if _has_few_channels(input, weight):
            output.register_hook(partial(_laid_out, layout=reference.layout(input)))
        feedback = arguments.feedback
        if feedback.mode != "weight" or feedback.advance:
            _check_real("weight", weight)
            eager.swap(output, input, weight, arguments)
    return output


def _has_few_channels(input: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN would write beyond its buffers if the gradient's layout differs from the input's (torch 2.14)."""
    return min(input.shape[1], weight.shape[0]) < 4


def _laid_out(grad: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    return None if grad is None else grad.contiguous(memory_format=layout)


def _is_linear(input: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether a convolution is a linear map of the channels, which are contiguous in memory."""
    if window.groups > 1 or any(window.padding) or weight.shape[2:].numel() != 1:
        return False
    if torch.compiler.is_exporting():
        return False  # the layout would become a condition of the graph
    return input.movedim(1, -1).is_contiguous()


def _position_by_position(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    feedback: Feedback,
    stride: Sequence[int],
    backend: str | None,
) -> Tensor:
    """Run a 1×1 convolution as a matrix product, which is several times faster in channels_last."""
    taken = input[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]
    out = feedback_linear(taken.movedim(1, -1), weight.flatten(1), bias, feedback.for_matrix(), backend=backend)
    return out.movedim(-1, 1)


def feedback_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    feedback: Feedback = BACKPROPAGATION,
    *,
    backend: str | None = None,
) -> Tensor:
    """Apply a linear map, with the error propagated through B (see ``rules``).

    Args:
        input: [..., in_features].
        weight: [out_features, in_features].
        bias: [out_features] or None.

    Returns:
        [..., out_features]. Under autocast, in its dtype.

    Raises:
        InputError: mismatched shapes (the message names the argument); a mode without the tensor it reads; complex
            numbers with feedback other than W.
    """
    if weight.dim() != 2:
        raise ShapeError(f"weight: expected [out_features, in_features], got {list(weight.shape)}")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ShapeError(f"input: expected [..., {weight.shape[1]}], got shape {list(input.shape)}")
    _check_bias(bias, weight)
    _check_feedback(feedback, weight)
    input, weight, bias = _autocast(input, weight, bias)
    chosen = backends.choose("feedback_linear", input.device.type, backend)
    if feedback.mode == "weight" and not feedback.advance:
        return reference.linear(input, weight, bias)
    return eager.feedback_linear(input, weight, bias, LinearArguments(feedback, chosen))


def direct_conv(
    input: Tensor,
    feedback: Tensor,
    output_size: Sequence[int],
    **geometry: Unpack[Geometry],
) -> Tensor:
    """Create the token of a convolution, by which the error at the logits reaches its input (direct feedback).

    Args:
        input: the input of the convolution, [N, C_in, *positions].
        feedback: B, [classes, C_in, *kernel].
        output_size: the output size of the convolution.
        geometry: stride, padding and dilation of the convolution; B covers all channels, regardless of groups.

    Returns:
        Zeros [N, classes]. Added to the logits, they change no value and receive the gradient e of the logits, from
        which ∂input = convᵀ(E; B) with E = e at every position.
    """
    _check_real("input", input)
    *per_dimension, _ = window(feedback.dim() - 2, **geometry)
    if torch.jit.is_tracing():
        output_size = [int(size) for size in output_size]  # sizes of a traced tensor are tensors
    return direct.direct_conv(input, feedback.to(input.dtype), list(output_size), per_dimension)


def direct_conv_transpose(
    input: Tensor, feedback: Tensor, output_size: Sequence[int], **geometry: Unpack[Geometry]
) -> Tensor:
    """Create the token of a transposed convolution, as :func:`direct_conv` does for a convolution.

    Args:
        input: [N, C_in, *positions].
        feedback: B, [classes, C_in, *kernel].
        output_size: the output size of the layer.
        geometry: stride, padding and dilation; B covers all channels, regardless of groups.
    """
    _check_real("input", input)
    shape = window(feedback.dim() - 2, **geometry)
    if feedback.requires_grad:  # the gradient of learned feedback is a mean over positions
        fixed = feedback.detach()
        feedback = fixed + (feedback - fixed) / max(math.prod(output_size), 1)
    matrix = reference.direct_conv_transpose_weight(feedback, input.shape[2:], output_size, shape)
    return direct_linear(input.flatten(1), matrix)


def direct_linear(input: Tensor, feedback: Tensor) -> Tensor:
    """Create the token of a linear layer, as :func:`direct_conv` does for a convolution: ∂input = e B.

    Args:
        input: [N, ..., in_features].
        feedback: B, [classes, in_features].
    """
    _check_real("input", input)
    return direct.direct_linear(input, feedback.to(input.dtype))


def feedback_segments(
    weight: Tensor,
    stored: Tensor | None,
    stream: Tensor | None,
    segments: FeedbackSegments,
    backend: str | None = None,
) -> Tensor:
    """Compute B of every segment, flat; zeros where the mode is ``custom``.

    Args:
        weight: flat.
        stored: the stored draws of the segments whose mode is ``stored`` or ``stored_sign``, concatenated; more may
            follow. None if there are none.
        stream: int64 [segments, 2]; None if no segment reads it.
        backend: an explicit choice of implementation.
    """
    chosen = backends.choose("feedback_segments", weight.device.type, backend)
    return run_feedback_segments(weight, stored, stream, segments, chosen)


def feedback_weight(weight: Tensor, feedback: Feedback) -> Tensor:
    """Compute B, shaped like ``weight``, detached from the graph."""
    _check_feedback(feedback, weight)
    return reference.feedback_weight(weight.detach(), feedback)


def _check_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ShapeError(f"bias: expected [{weight.shape[0]}], got {list(bias.shape)}")


def _check_real(name: str, tensor: Tensor) -> None:
    if tensor.is_complex():
        raise InputError(
            f"{name}: expected real numbers, got {tensor.dtype}; feedback weights are defined for real layers, use "
            "rule 'bp' for complex ones"
        )


def _check_feedback(feedback: Feedback, weight: Tensor) -> None:
    mode = feedback.mode
    if mode not in MODES or mode == "direct":
        raise unknown("mode", mode, MODES[:-1], "feedback")
    if mode != "weight":
        _check_real("weight", weight)
    if mode.startswith("stored"):
        if feedback.stored is None:
            raise InputError(f"feedback: mode {mode!r} needs a stored tensor")
        if feedback.stored.shape != weight.shape:
            raise ShapeError(
                f"feedback: expected the weight's shape {list(weight.shape)}, got {list(feedback.stored.shape)}"
            )
    if mode == "drawn_sign" and feedback.stream is None:
        raise InputError("feedback: mode 'drawn_sign' needs a stream (seed, draw)")


# A constant, because torch.compile of torch 2.11 does not trace it.
@torch_private.constant
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = input.device.type
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(input), cast(weight), None if bias is None else cast(bias)
