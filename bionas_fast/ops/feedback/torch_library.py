"""Registration of the operators behind :mod:`.feedback`: schemas, implementations, fakes and gradients.

One implementation serves every device: the choice of backend is an argument, made by the functions that users call.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from bionas_fast import backends, native
from bionas_fast.kernels.feedback import reference
from bionas_fast.rules import MODES

for _op in ("feedback_conv", "feedback_linear", "feedback_segments"):
    backends.declare(_op, native=native.obstacle, triton=backends.triton_obstacle)
for _op in ("direct_conv", "direct_linear"):
    backends.declare(_op)

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
_library.define(
    "feedback_segments(Tensor weight, Tensor? stored, Tensor? stream, int[] lengths, str[] modes, float[] bounds, "
    "float[] scales, str backend) -> Tensor"
)
_library.define(f"direct_conv(Tensor input, Tensor feedback, SymInt[] output_size, {_GEOMETRY}) -> Tensor")
_library.define(
    f"direct_conv_backward(Tensor error, Tensor feedback, SymInt[] input_shape, SymInt[] output_size, {_GEOMETRY}) "
    "-> Tensor"
)
_library.define("direct_linear(Tensor input, Tensor feedback) -> Tensor")
_library.define("direct_linear_backward(Tensor error, Tensor feedback, SymInt[] input_shape) -> Tensor")

_kernel = "CompositeExplicitAutograd"
_CODES = {mode: code for code, mode in enumerate((*MODES, "custom"))}


def _triton():
    # Not on every system, and not quick to import.
    from bionas_fast.kernels.feedback import triton

    return triton


def _make_b(backend, weight, stored, stream, mode, bound, scale):
    # Modes that take a tensor as it is have nothing to compute.
    if backend == "native" and weight.dtype == torch.float32 and mode.endswith("sign"):
        stored = None if stored is None else stored.to(weight.dtype)
        return torch.ops.bionas_fast_native.feedback_weight.default(weight, stored, stream, mode, bound, scale)
    return reference.feedback_weight(weight, stored, stream, mode, bound, scale)


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
    # In the input's layout: a gradient of stride 0, as .sum() sends it, is copied, one in channels_last is not.
    grad = grad.contiguous(memory_format=reference.layout(input))
    if backend == "triton":
        made = (weight, stored, stream, mode, bound, scale)
        grads = _triton().conv_backward(grad, input, *made, *geometry, output_mask)
    else:
        # Without δ_in no feedback is needed; any tensor of the right shape does.
        b = _make_b(backend, weight, stored, stream, mode, bound, scale) if output_mask[0] else weight
        grads = reference.conv_backward(grad, input, b, *geometry, list(output_mask))
    # A gradient comes in the layout of its tensor, whichever backend makes it.
    down, own, of_bias = grads
    return (
        down.contiguous(memory_format=reference.layout(input)) if output_mask[0] else grad.new_empty(0),
        own.contiguous(memory_format=reference.layout(weight)) if output_mask[1] else grad.new_empty(0),
        of_bias if output_mask[2] else grad.new_empty(0),
    )


@torch.library.register_fake("bionas_fast::feedback_conv_backward", lib=_library)
def _conv_backward_fake(grad, input, weight, stored, stream, mode, bound, scale, *rest):
    *_geometry, output_mask, _backend = rest
    likes = (input, weight, weight.new_empty(weight.shape[0]))
    return tuple(
        torch.empty_like(like, memory_format=reference.layout(like)) if wanted else grad.new_empty(0)
        for like, wanted in zip(likes, output_mask, strict=True)
    )


@torch.library.impl(_library, "feedback_linear", _kernel)
def _linear(input, weight, bias, stored, stream, mode, bound, scale, advance, backend):
    return reference.linear(input, weight, bias)


@torch.library.register_fake("bionas_fast::feedback_linear", lib=_library)
def _linear_fake(input, weight, bias, stored, stream, mode, bound, scale, advance, backend):
    return input.new_empty(*input.shape[:-1], weight.shape[0])


@torch.library.impl(_library, "feedback_linear_backward", _kernel)
def _linear_backward(grad, input, weight, stored, stream, mode, bound, scale, output_mask, backend):
    if backend == "triton":
        grads = _triton().linear_backward(grad, input, weight, stored, stream, mode, bound, scale, output_mask)
    else:
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


@lru_cache(maxsize=1024)
def _tables(lengths, modes, bounds, scales):
    """Length and mode, bound and scale of every segment: taken apart, long lists would cost more than the work."""
    codes = [_CODES[mode] for mode in modes]
    # By way of numpy: not a fake tensor, whoever asks first.
    segments, magnitudes = np.array([lengths, codes], dtype=np.int64), np.array([bounds, scales], dtype=np.float64)
    return torch.from_numpy(segments.T.copy()), torch.from_numpy(magnitudes.T.copy())


@torch.library.impl(_library, "feedback_segments", _kernel)
def _segments(weight, stored, stream, lengths, modes, bounds, scales, backend):
    segments = (lengths, modes, bounds, scales)
    if backend == "triton":
        return _triton().feedback_segments(weight, stored, stream, *segments)
    if backend == "native" and weight.dtype == torch.float32:
        tables = _tables(tuple(lengths), tuple(modes), tuple(bounds), tuple(scales))
        return torch.ops.bionas_fast_native.feedback_segments.default(weight, stored, stream, *tables)
    return reference.feedback_segments(weight, stored, stream, *segments)


@torch.library.register_fake("bionas_fast::feedback_segments", lib=_library)
def _segments_fake(weight, stored, stream, lengths, modes, bounds, scales, backend):
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


# In eager mode the dispatcher would cost more than a small layer: there the same functions are called without it.


def _forward(function):
    def forward(ctx, *inputs):
        output = function(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    return forward


class _EagerConv(torch.autograd.Function):
    forward = staticmethod(_forward(_conv))
    backward = staticmethod(_backward(_conv_backward))


class _EagerLinear(torch.autograd.Function):
    forward = staticmethod(_forward(_linear))
    backward = staticmethod(_backward(_linear_backward))


def feedback_conv(*arguments):
    return torch.ops.bionas_fast.feedback_conv(*arguments) if backends.traced() else _EagerConv.apply(*arguments)


def feedback_linear(*arguments):
    return torch.ops.bionas_fast.feedback_linear(*arguments) if backends.traced() else _EagerLinear.apply(*arguments)


def is_plain():
    """Whether nobody looks on, and what a node saves is for its own backward pass only, not for checkpointing."""
    return not backends.traced() and torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def swap(output, input, weight, feedback, backend):
    """Hand B to the node of torch's own convolution instead of W, for a tenth of what a node in Python costs."""
    mode, stored, stream, bound, scale, advance = feedback
    read = [tensor for tensor in (stored, None if mode == "stored" else weight) if tensor is not None]
    versions = [tensor._version for tensor in read]
    snapshot = stream.clone() if mode == "drawn_sign" else None
    needed, dtype = input.requires_grad, output.dtype

    def make_b(_):
        if [tensor._version for tensor in read] != versions:
            raise RuntimeError("the weight or its feedback was changed in place between forward and backward pass")
        own = weight.detach()
        b = _make_b(backend, own, stored, snapshot, mode, bound, scale) if needed else own
        if advance:
            stream[1].add_(1)
        return b.to(dtype)

    output.grad_fn._raw_saved_weight.register_hooks(_forget, make_b)


def _forget(_):
    return None


def feedback_segments(*arguments):
    return torch.ops.bionas_fast.feedback_segments(*arguments) if backends.traced() else _segments(*arguments)


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
