"""feedback_conv, feedback_linear and their direct variants: a layer whose error travels down through B instead of W."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bionas_fast import backends, native
from bionas_fast.errors import InputError, unknown
from bionas_fast.kernels.feedback import reference
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

for _op in ("feedback_conv", "feedback_linear", "feedback_segments"):
    backends.declare(_op, native=native.obstacle)
for _op in ("direct_conv", "direct_linear"):
    backends.declare(_op)


def feedback_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    feedback: Feedback = BACKPROPAGATION,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
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
    input, weight, bias = _autocast(input, weight, bias)
    return torch.ops.bionas_fast.feedback_conv(
        input,
        weight,
        bias,
        feedback.stored,
        feedback.stream,
        feedback.mode,
        feedback.bound,
        feedback.scale,
        feedback.advance,
        _per_dimension("stride", stride, dims),
        _per_dimension("padding", padding, dims),
        _per_dimension("dilation", dilation, dims),
        groups,
        backends.choose("feedback_conv", input.device.type, backend),
    )


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
    return torch.ops.bionas_fast.feedback_linear(
        input,
        weight,
        bias,
        feedback.stored,
        feedback.stream,
        feedback.mode,
        feedback.bound,
        feedback.scale,
        feedback.advance,
        backends.choose("feedback_linear", input.device.type, backend),
    )


def direct_conv(
    input: Tensor,
    feedback: Tensor,
    output_size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
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
        _per_dimension("stride", stride, dims),
        _per_dimension("padding", padding, dims),
        _per_dimension("dilation", dilation, dims),
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
        stored: flat, or None where no segment reads it.
        stream: int64 [segments, 2], or None where no segment reads it.
    """
    if backends.choose("feedback_segments", weight.device.type) == "native" and weight.dtype == torch.float32:
        return torch.ops.bionas_fast_native.feedback_segments(weight, stored, stream, *segments)
    out = torch.zeros_like(weight)
    first = 0
    for k, (length, mode) in enumerate(zip(segments.lengths, segments.modes, strict=True)):
        part = slice(first, first + length)
        first += length
        if mode == "custom":
            continue
        out[part] = reference.feedback_weight(
            weight[part],
            None if stored is None else stored[part],
            None if stream is None else stream[k],
            mode,
            segments.bounds[k],
            segments.scales[k],
        )
    return out


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


def _per_dimension(name: str, value: int | Sequence[int], dims: int) -> list[int]:
    values = [value] * dims if isinstance(value, int) else list(value)
    if len(values) != dims:
        raise InputError(f"{name}: expected one number or {dims}, got {values}")
    return values


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = input.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(input), cast(weight), None if bias is None else cast(bias)


# Schemas and kernels. One implementation serves every device: the choice of backend is an argument, made above.

_FEEDBACK = "Tensor? stored, Tensor? stream, str mode, float bound, float scale"
_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_library = torch.library.Library("bionas_fast", "FRAGMENT")
_library.define(
    f"feedback_conv(Tensor input, Tensor weight, Tensor? bias, {_FEEDBACK}, bool advance, {_GEOMETRY}, "
    "SymInt groups, str backend) -> Tensor"
)
_library.define(
    f"feedback_conv_backward(Tensor grad, Tensor input, Tensor weight, {_FEEDBACK}, {_GEOMETRY}, SymInt groups, "
    "bool[3] output_mask, str backend) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"feedback_linear(Tensor input, Tensor weight, Tensor? bias, {_FEEDBACK}, bool advance, str backend) -> Tensor"
)
_library.define(
    f"feedback_linear_backward(Tensor grad, Tensor input, Tensor weight, {_FEEDBACK}, bool[3] output_mask, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)
_library.define(f"direct_conv(Tensor input, Tensor feedback, SymInt[] output_size, {_GEOMETRY}) -> Tensor")
_library.define(
    f"direct_conv_backward(Tensor error, Tensor feedback, SymInt[] input_shape, SymInt[] output_size, {_GEOMETRY}) "
    "-> Tensor"
)
_library.define("direct_linear(Tensor input, Tensor feedback) -> Tensor")
_library.define("direct_linear_backward(Tensor error, Tensor feedback, SymInt[] input_shape) -> Tensor")

_kernel = "CompositeExplicitAutograd"


def _make_b(backend, weight, stored, stream, mode, bound, scale):
    # Modes that take a tensor as it is have nothing to compute.
    if backend == "native" and weight.dtype == torch.float32 and mode.endswith("sign"):
        stored = None if stored is None else stored.to(weight.dtype)
        return torch.ops.bionas_fast_native.feedback_weight(weight, stored, stream, mode, bound, scale)
    return reference.feedback_weight(weight, stored, stream, mode, bound, scale)


def _dense(grad, input):
    # In the input's layout: a gradient of stride 0, as .sum() sends it, is copied, one in channels_last is not.
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(input.dim(), torch.contiguous_format)
    if input.is_contiguous() or not input.is_contiguous(memory_format=layout):
        layout = torch.contiguous_format
    return grad.contiguous(memory_format=layout)


@torch.library.impl(_library, "feedback_conv", _kernel)
def _conv(input, weight, bias, stored, stream, mode, bound, scale, advance, *geometry_and_backend):
    *geometry, _backend = geometry_and_backend
    return reference.conv(input, weight, bias, *geometry)


@torch.library.register_fake("bionas_fast::feedback_conv", lib=_library)
def _conv_fake(input, weight, bias, stored, stream, mode, bound, scale, advance, *geometry_and_backend):
    *geometry, _backend = geometry_and_backend
    return reference.conv(input, weight, bias, *geometry)


@torch.library.impl(_library, "feedback_conv_backward", _kernel)
def _conv_backward(grad, input, weight, stored, stream, mode, bound, scale, *rest):
    *geometry, output_mask, backend = rest
    # Without δ_in no feedback is needed; any tensor of the right shape does.
    b = _make_b(backend, weight, stored, stream, mode, bound, scale) if output_mask[0] else weight
    grads = reference.conv_backward(_dense(grad, input), input, b, *geometry, list(output_mask))
    return tuple(g if wanted else grad.new_empty(0) for g, wanted in zip(grads, output_mask, strict=True))


@torch.library.register_fake("bionas_fast::feedback_conv_backward", lib=_library)
def _conv_backward_fake(grad, input, weight, stored, stream, mode, bound, scale, *rest):
    *geometry, output_mask, _backend = rest
    grads = reference.conv_backward(_dense(grad, input), input, weight, *geometry, list(output_mask))
    return tuple(g if wanted else grad.new_empty(0) for g, wanted in zip(grads, output_mask, strict=True))


@torch.library.impl(_library, "feedback_linear", _kernel)
def _linear(input, weight, bias, stored, stream, mode, bound, scale, advance, backend):
    return reference.linear(input, weight, bias)


@torch.library.register_fake("bionas_fast::feedback_linear", lib=_library)
def _linear_fake(input, weight, bias, stored, stream, mode, bound, scale, advance, backend):
    return input.new_empty(*input.shape[:-1], weight.shape[0])


@torch.library.impl(_library, "feedback_linear_backward", _kernel)
def _linear_backward(grad, input, weight, stored, stream, mode, bound, scale, output_mask, backend):
    b = _make_b(backend, weight, stored, stream, mode, bound, scale) if output_mask[0] else weight
    grads = reference.linear_backward(grad, input, b, list(output_mask))
    return tuple(grad.new_empty(0) if g is None else g for g in grads)


@torch.library.register_fake("bionas_fast::feedback_linear_backward", lib=_library)
def _linear_backward_fake(grad, input, weight, stored, stream, mode, bound, scale, output_mask, backend):
    shapes = (input.shape, weight.shape, weight.shape[:1])
    return tuple(grad.new_empty(shape if wanted else (0,)) for shape, wanted in zip(shapes, output_mask, strict=True))


def _setup_context(ctx, inputs, output):
    input, weight, bias, stored, stream, mode, bound, scale, advance, *rest = inputs
    # The draw of this pass, whatever other passes do to the stream before its backward comes.
    snapshot = stream.clone() if mode == "drawn_sign" else None
    ctx.save_for_backward(input, weight, stored, snapshot)
    ctx.stream = stream if advance else None
    ctx.has_bias = bias is not None
    ctx.feedback = (mode, bound, scale)
    ctx.rest = rest


def _backward(op):
    def backward(ctx, grad):
        input, weight, stored, snapshot = ctx.saved_tensors
        *geometry, backend = ctx.rest
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
        grads = op(grad, input, weight, stored, snapshot, *ctx.feedback, *geometry, mask, backend)
        if ctx.stream is not None:
            ctx.stream[1].add_(1)
        unused = [None] * (6 + len(ctx.rest))
        return (*(g if wanted else None for g, wanted in zip(grads, mask, strict=True)), *unused)

    return backward


torch.library.register_autograd(
    "bionas_fast::feedback_conv",
    _backward(torch.ops.bionas_fast.feedback_conv_backward),
    setup_context=_setup_context,
    lib=_library,
)
torch.library.register_autograd(
    "bionas_fast::feedback_linear",
    _backward(torch.ops.bionas_fast.feedback_linear_backward),
    setup_context=_setup_context,
    lib=_library,
)


@torch.library.impl(_library, "direct_conv", _kernel)
@torch.library.impl(_library, "direct_linear", _kernel)
@torch.library.register_fake("bionas_fast::direct_conv", lib=_library)
@torch.library.register_fake("bionas_fast::direct_linear", lib=_library)
def _direct(input, feedback, *geometry):
    return input.new_zeros(input.shape[0], feedback.shape[0])


@torch.library.impl(_library, "direct_conv_backward", _kernel)
def _direct_conv_backward(error, feedback, input_shape, output_size, *geometry):
    return reference.direct_conv_backward(error, feedback, input_shape, output_size, *geometry)


@torch.library.impl(_library, "direct_linear_backward", _kernel)
def _direct_linear_backward(error, feedback, input_shape):
    return reference.direct_linear_backward(error, feedback, input_shape)


@torch.library.register_fake("bionas_fast::direct_conv_backward", lib=_library)
@torch.library.register_fake("bionas_fast::direct_linear_backward", lib=_library)
def _direct_backward_fake(error, feedback, input_shape, *geometry):
    return error.new_empty(tuple(input_shape))


def _direct_setup_context(ctx, inputs, output):
    input, feedback, *ctx.geometry = inputs
    ctx.save_for_backward(feedback)
    ctx.input_shape = input.shape


def _direct_backward(op):
    def backward(ctx, error):
        (feedback,) = ctx.saved_tensors
        down = op(error, feedback, ctx.input_shape, *ctx.geometry) if ctx.needs_input_grad[0] else None
        return (down, None, *[None] * len(ctx.geometry))

    return backward


for _name in ("direct_conv", "direct_linear"):
    torch.library.register_autograd(
        f"bionas_fast::{_name}",
        _direct_backward(getattr(torch.ops.bionas_fast, f"{_name}_backward")),
        setup_context=_direct_setup_context,
        lib=_library,
    )
