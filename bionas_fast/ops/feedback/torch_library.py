"""Registration of the operators of :mod:`.feedback`: schemas, implementations, fakes and gradients.

One implementation serves every device; the backend is an argument, chosen by the public functions. The arguments of a
torch.library schema are flat; here they become the records :class:`ConvArguments` and :class:`LinearArguments`, which
all implementations take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bionas_fast import backends, native
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import COMPUTED, SEGMENT_MODES, Advance, Feedback, FeedbackSegments
from bionas_fast.kernels.feedback.reference import Grads
from bionas_fast.kernels.window import Window

for _op in ("feedback_conv", "feedback_linear", "feedback_segments"):
    backends.declare(_op, native=native.obstacle, triton=backends.triton_obstacle)

# In the order of the fields of Feedback and Window.
_FEEDBACK = "str mode, Tensor? stored, Tensor? stream, float bound, float scale, bool advance"
_PER_DIMENSION = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_CONV = f"{_FEEDBACK}, {_PER_DIMENSION}, SymInt groups, str backend"
_LINEAR = f"{_FEEDBACK}, str backend"
_TRANSPOSE = f"{_FEEDBACK}, {_PER_DIMENSION}, SymInt groups, SymInt[] output_padding, str backend"
_GRADS = "(Tensor, Tensor, Tensor)"

_library = torch.library.Library("bionas_fast", "FRAGMENT")
for _name, _arguments in (("conv", _CONV), ("linear", _LINEAR), ("conv_transpose", _TRANSPOSE)):
    _library.define(f"feedback_{_name}(Tensor input, Tensor weight, Tensor? bias, {_arguments}) -> Tensor")
    _library.define(
        f"feedback_{_name}_backward(Tensor grad, Tensor input, Tensor weight, {_arguments}, bool[3] output_mask) "
        f"-> {_GRADS}"
    )
_library.define(
    "feedback_segments(Tensor weight, Tensor? stored, Tensor? stream, int[] lengths, str[] modes, float[] bounds, "
    "float[] scales, str backend) -> Tensor"
)

_kernel = "CompositeExplicitAutograd"
# Up to this number of weights, calling a compiled kernel takes longer than a few of PyTorch's operations.
_FEW = 4096
_CODES = {mode: code for code, mode in enumerate(SEGMENT_MODES)}


class ConvArguments(NamedTuple):
    """The non-tensor arguments of ``feedback_conv``."""

    feedback: Feedback
    window: Window
    backend: str

    @classmethod
    def read(cls, flat: Sequence[Any]) -> ConvArguments:
        """Build the record from the flat arguments of the schema."""
        return cls(Feedback(*flat[:6]), Window(*flat[6:10]), flat[10])

    def flat(self) -> tuple[Any, ...]:
        """Flatten the record to the arguments of the schema."""
        return (*self.feedback, *self.window, self.backend)

    def having(self, feedback: Feedback) -> ConvArguments:
        """Return a copy with another feedback."""
        return ConvArguments(feedback, self.window, self.backend)

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer in plain PyTorch."""
        return reference.conv(input, weight, bias, self.window)

    def plain_backward(self, grad: Tensor, input: Tensor, b: Tensor, output_mask: Sequence[bool]) -> Grads:
        """Run the backward pass through B in plain PyTorch, which differentiates it."""
        return reference.conv_backward(grad, input, b, self.window, output_mask)


class LinearArguments(NamedTuple):
    """The non-tensor arguments of ``feedback_linear``."""

    feedback: Feedback
    backend: str

    @classmethod
    def read(cls, flat: Sequence[Any]) -> LinearArguments:
        """Build the record from the flat arguments of the schema."""
        return cls(Feedback(*flat[:6]), flat[6])

    def flat(self) -> tuple[Any, ...]:
        """Flatten the record to the arguments of the schema."""
        return (*self.feedback, self.backend)

    def having(self, feedback: Feedback) -> LinearArguments:
        """Return a copy with another feedback."""
        return LinearArguments(feedback, self.backend)

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer in plain PyTorch."""
        return reference.linear(input, weight, bias)

    def plain_backward(self, grad: Tensor, input: Tensor, b: Tensor, output_mask: Sequence[bool]) -> Grads:
        """Run the backward pass through B in plain PyTorch, which differentiates it."""
        return reference.linear_backward(grad, input, b, output_mask)


class Arguments(Protocol):
    """The non-tensor arguments of an op: records such as :class:`ConvArguments`."""

    @property
    def feedback(self) -> Feedback:
        """The construction of B."""

    def flat(self) -> tuple[Any, ...]:
        """Flatten the record to the arguments of the schema."""

    def having(self, feedback: Feedback) -> Arguments:
        """Return a copy with another feedback."""

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer in plain PyTorch."""

    def plain_backward(self, grad: Tensor, input: Tensor, b: Tensor, output_mask: Sequence[bool]) -> Grads:
        """Run the backward pass through B in plain PyTorch, which differentiates it."""


def _triton() -> ModuleType:
    # Not available on every system, and slow to import.
    from bionas_fast.kernels.feedback import triton

    return triton


def make_b(weight: Tensor, feedback: Feedback, backend: str) -> Tensor:
    """Compute B in the weight's dtype."""
    # The modes ``weight`` and ``stored`` use an existing tensor.
    if backend == "native" and weight.dtype == torch.float32 and feedback.mode in COMPUTED:
        mode, stored, stream, bound, scale, _ = feedback
        if mode == "drawn_sign" or weight.numel() > _FEW:
            stored = None if stored is None else stored.to(weight.dtype)
            return torch.ops.bionas_fast_native.feedback_weight.default(weight, mode, stored, stream, bound, scale)
    return reference.feedback_weight(weight, feedback)


def make_each_b(weights: Sequence[Tensor], feedback: Sequence[Feedback]) -> list[Tensor]:
    """Compute B of several weights by the compiled kernels: contiguous, float32, on the CPU."""
    out = [
        weight if own.stored is None else own.stored for weight, own in zip(weights, feedback, strict=True)
    ]  # those that exist
    computed = [k for k, own in enumerate(feedback) if own.mode in COMPUTED]
    if computed:
        chosen = [feedback[k] for k in computed]
        found = torch.ops.bionas_fast_native.feedback_weights.default(
            [weights[k] for k in computed],
            [own.mode for own in chosen],
            [own.stored for own in chosen],
            [own.stream for own in chosen],
            [own.bound for own in chosen],
            [own.scale for own in chosen],
        )
        for k, b in zip(computed, found, strict=True):
            out[k] = b
    return [b.contiguous() for b in out]


def constant_b(weight: Tensor, feedback: Feedback) -> Tensor:
    """Compute B in plain PyTorch for a backward pass that is differentiated: except for B = W, B is a constant."""
    if feedback.mode == "weight":
        return weight
    return reference.feedback_weight(weight.detach(), feedback).detach()


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: ConvArguments) -> Tensor:
    """Compute W ⋆ x + b, [N, C_out, *positions]."""
    return reference.conv(input, weight, bias, arguments.window)


def conv_backward(
    grad: Tensor, input: Tensor, weight: Tensor, arguments: ConvArguments, output_mask: Sequence[bool]
) -> Grads:
    """Compute (δ_in, ∂W, ∂b), each in the layout of its tensor on every backend; None where not requested."""
    feedback, window, backend = arguments
    # In the input's layout: a gradient of stride 0, as from .sum(), is copied, a channels_last one is not.
    grad = grad.contiguous(memory_format=reference.layout(input))
    if backend == "triton":
        grads = _triton().conv_backward(grad, input, weight, feedback, window, output_mask)
    else:
        # Without δ_in no feedback is needed; any tensor of the right shape is accepted.
        b = make_b(weight, feedback, backend) if output_mask[0] else weight
        grads = reference.conv_backward(grad, input, b, window, output_mask)
    input_grad, weight_grad, bias_grad = grads
    return (
        input_grad.contiguous(memory_format=reference.layout(input)) if output_mask[0] else None,
        weight_grad.contiguous(memory_format=reference.layout(weight)) if output_mask[1] else None,
        bias_grad if output_mask[2] else None,
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: LinearArguments) -> Tensor:
    """Compute x Wᵀ + b, [..., out_features]."""
    out = reference.linear(input, weight, bias)
    # Not a view, as PyTorch's result is unless it is a matrix: an autograd function that returns a view forbids
    # in-place operations on it.
    return out if input.dim() == 2 else out.data


def linear_backward(
    grad: Tensor, input: Tensor, weight: Tensor, arguments: LinearArguments, output_mask: Sequence[bool]
) -> Grads:
    """Compute (δ_in, ∂W, ∂b) as selected by ``output_mask``."""
    feedback, backend = arguments
    if backend == "triton":
        return _triton().linear_backward(grad, input, weight, feedback, output_mask)
    b = make_b(weight, feedback, backend) if output_mask[0] else weight
    return reference.linear_backward(grad, input, b, output_mask)


def segments(
    weight: Tensor,
    stored: Tensor | None,
    stream: Tensor | None,
    parts: FeedbackSegments,
    backend: str,
    advance: Advance | None = None,
) -> Tensor:
    """Compute B of every segment, flat, and advance the streams of later passes."""
    if backend == "triton":
        return _triton().feedback_segments(weight, stored, stream, parts, advance)
    if advance is not None:
        advance.apply()
    if backend == "native" and weight.dtype == torch.float32:
        tables = _tables(parts)
        return torch.ops.bionas_fast_native.feedback_segments.default(weight, stored, stream, *tables)
    return reference.feedback_segments(weight, stored, stream, parts)


@lru_cache(maxsize=1024)
def _tables(parts: FeedbackSegments) -> tuple[Tensor, Tensor]:
    """Build tensors of length and mode, and of bound and scale, of every segment; long lists are slow to pass."""
    codes = [_CODES[mode] for mode in parts.modes]
    # Via numpy: never a fake tensor, even if first called under FakeTensorMode.
    lengths, magnitudes = np.array([parts.lengths, codes], np.int64), np.array([parts.bounds, parts.scales], np.float64)
    return torch.from_numpy(lengths.T.copy()), torch.from_numpy(magnitudes.T.copy())


def save(ctx: Any, tensors: tuple[Tensor, Tensor, Tensor | None], arguments: Arguments) -> None:
    """Save the tensors that :func:`gradients` reads.

    Args:
        tensors: input, weight and bias.
    """
    input: Tensor | None
    weight: Tensor | None
    input, weight, bias = tensors
    mode, stored, stream, bound, scale, advance = arguments.feedback
    needed = ctx.needs_input_grad
    error, own = needed[0], needed[1]
    # The draw of this pass: other passes may advance the stream before its backward pass.
    snapshot = stream.clone() if stream is not None and mode == "drawn_sign" else None
    # Like torch.nn.Linear, save only what is read: other tensors may change before the backward pass.
    if weight.dim() == 2 and (mode == "stored" or not (error and own)):
        ctx.shapes = input.shape, weight.shape
        input, weight = input if own else None, weight if error and mode != "stored" else None
    ctx.save_for_backward(input, weight, stored if error else None, snapshot)
    ctx.stream = stream if advance else None
    ctx.has_bias = bias is not None
    if stored is not None or stream is not None:
        arguments = arguments.having(Feedback(mode, None, None, bound, scale))
    ctx.arguments = arguments


def gradients(ctx: Any, grad: Tensor, backward: Callable[..., Grads]) -> Grads:
    """Compute the gradients of input, weight and bias by one of the functions ``*_backward``.

    Under ``create_graph`` plain PyTorch runs instead, whose gradients can be differentiated.
    """
    input, weight, stored, snapshot = ctx.saved_tensors
    needed, arguments = ctx.needs_input_grad, ctx.arguments
    mask = [needed[0], needed[1], ctx.has_bias and needed[2]]
    if input is None or weight is None:
        # Of these only the shape is read.
        input = grad.new_empty(()).expand(ctx.shapes[0]) if input is None else input
        weight = grad.new_empty(()).expand(ctx.shapes[1]) if weight is None else weight
    if stored is not None or snapshot is not None:
        mode, _, _, bound, scale, _ = arguments.feedback
        arguments = arguments.having(Feedback(mode, stored, snapshot, bound, scale))
    if torch.is_grad_enabled():
        b = constant_b(weight, arguments.feedback) if mask[0] else weight.detach()
        grads = arguments.plain_backward(grad, input, b, mask)
    else:
        grads = backward(grad, input, weight, arguments, mask)
    if ctx.stream is not None:
        ctx.stream[1].add_(1)
    input_grad, weight_grad, bias_grad = grads
    return (
        input_grad if mask[0] else None,
        weight_grad if mask[1] else None,
        bias_grad if mask[2] else None,
    )


def register(
    name: str,
    kind: Any,
    forward: Callable[..., Tensor],
    backward: Callable[..., Grads],
) -> None:
    """Register the implementations and the gradient of an op and its backward op; their arguments are flat.

    Args:
        name: the op.
        kind: the record of its non-tensor arguments.
        forward: (input, weight, bias, arguments) -> output.
        backward: (grad, input, weight, arguments, output_mask) -> gradients.
    """

    def implementation(input: Tensor, weight: Tensor, bias: Tensor | None, *flat: Any) -> Tensor:
        return forward(input, weight, bias, kind.read(flat))

    def backward_implementation(grad: Tensor, input: Tensor, weight: Tensor, *flat: Any) -> tuple[Tensor, ...]:
        *arguments, output_mask = flat
        grads = backward(grad, input, weight, kind.read(arguments), output_mask)
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, inputs[:3], kind.read(inputs[3:]))

    def call(grad: Tensor, input: Tensor, weight: Tensor, arguments: Any, output_mask: Sequence[bool]) -> Grads:
        return backward_op(grad, input, weight, *arguments.flat(), output_mask)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad, call), *[None] * len(ctx.arguments.flat())

    torch.library.impl(_library, name, _kernel)(implementation)
    torch.library.impl(_library, f"{name}_backward", _kernel)(backward_implementation)
    backward_op = getattr(torch.ops.bionas_fast, f"{name}_backward")
    qualified = f"bionas_fast::{name}"
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context, lib=_library)


register("feedback_conv", ConvArguments, conv, conv_backward)
register("feedback_linear", LinearArguments, linear, linear_backward)


@torch.library.impl(_library, "feedback_segments", _kernel)
def _segments(weight: Tensor, stored: Tensor | None, stream: Tensor | None, *flat: Any) -> Tensor:
    *parts, backend = flat
    return segments(weight, stored, stream, FeedbackSegments(*map(tuple, parts)), backend)


@torch.library.register_fake("bionas_fast::feedback_conv", lib=_library)
def _conv_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *flat: Any) -> Tensor:
    return conv(input, weight, bias, ConvArguments.read(flat))


@torch.library.register_fake("bionas_fast::feedback_linear", lib=_library)
def _linear_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *flat: Any) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


@torch.library.register_fake("bionas_fast::feedback_conv_backward", lib=_library)
def _conv_backward_fake(grad: Tensor, input: Tensor, weight: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    likes = (input, weight, weight.new_empty(weight.shape[0]))
    return tuple(
        torch.empty_like(like, memory_format=reference.layout(like)) if wanted else grad.new_empty(0)
        for like, wanted in zip(likes, flat[-1], strict=True)
    )


@torch.library.register_fake("bionas_fast::feedback_linear_backward", lib=_library)
def _linear_backward_fake(grad: Tensor, input: Tensor, weight: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    shapes = (input.shape, weight.shape, weight.shape[:1])
    return tuple(grad.new_empty(shape if wanted else (0,)) for shape, wanted in zip(shapes, flat[-1], strict=True))


@torch.library.register_fake("bionas_fast::feedback_segments", lib=_library)
def _segments_fake(weight: Tensor, *flat: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)
