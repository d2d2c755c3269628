"""The direct variants of the feedback ops: zeros whose gradient, the error at the logits, reaches a layer's input.

Learned feedback receives its gradient, e ⊗ x, in the same pass.

Registered ops, and inside transforms of torch.func an autograd function in plain PyTorch; see :mod:`.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bionas_fast import backends
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.window import Window
from bionas_fast.ops.feedback import transforms

for _op in ("direct_conv", "direct_linear"):
    backends.declare(_op)

_kernel = "CompositeExplicitAutograd"
_PER_DIMENSION = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_library = torch.library.Library("bionas_fast", "FRAGMENT")
_library.define(f"direct_conv(Tensor input, Tensor feedback, SymInt[] output_size, {_PER_DIMENSION}) -> Tensor")
_library.define(
    f"direct_conv_backward(Tensor error, Tensor feedback, SymInt[] input_shape, SymInt[] output_size, {_PER_DIMENSION})"
    " -> Tensor"
)
_library.define("direct_linear(Tensor input, Tensor feedback) -> Tensor")
_library.define("direct_linear_backward(Tensor error, Tensor feedback, SymInt[] input_shape) -> Tensor")


def direct_conv(input: Tensor, feedback: Tensor, output_size: list[int], per_dimension: Sequence[Any]) -> Tensor:
    """Run the op ``direct_conv``."""
    if transforms.active():
        return _Direct.apply(input, feedback, (output_size, *per_dimension))
    return torch.ops.bionas_fast.direct_conv(input, feedback, output_size, *per_dimension)


def direct_linear(input: Tensor, feedback: Tensor) -> Tensor:
    """Run the op ``direct_linear``."""
    if transforms.active():
        return _Direct.apply(input, feedback, ())
    return torch.ops.bionas_fast.direct_linear(input, feedback)


class _Direct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, feedback: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        return input.new_zeros(input.shape[0], feedback.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, feedback, ctx.geometry = inputs
        ctx.save_for_backward(input, feedback)
        ctx.save_for_forward(input, feedback)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        input, feedback = ctx.saved_tensors
        run = _conv_backward if ctx.geometry else _linear_backward
        down = run(error, feedback, input.shape, *ctx.geometry)
        return down, _feedback_gradient(error, input, feedback, ctx.geometry), None

    @staticmethod
    def jvp(ctx: Any, input: Tensor, *_: None) -> Tensor:
        _, feedback = ctx.saved_tensors
        if not ctx.geometry:
            return input.reshape(len(input), -1, input.shape[-1]).sum(1) @ feedback.t()
        return reference.conv(input, feedback, None, Window(*ctx.geometry[1:])).flatten(2).sum(2)


@torch.library.impl(_library, "direct_conv", _kernel)
@torch.library.impl(_library, "direct_linear", _kernel)
@torch.library.register_fake("bionas_fast::direct_conv", lib=_library)
@torch.library.register_fake("bionas_fast::direct_linear", lib=_library)
def _direct(input: Tensor, feedback: Tensor, *geometry: Any) -> Tensor:
    return input.new_zeros(input.shape[0], feedback.shape[0])


@torch.library.impl(_library, "direct_conv_backward", _kernel)
def _conv_backward(
    error: Tensor, feedback: Tensor, input_shape: Sequence[int], output_size: list[int], *per_dimension: list[int]
) -> Tensor:
    stride, padding, dilation = per_dimension
    return reference.direct_conv_backward(error, feedback, input_shape, output_size, Window(stride, padding, dilation))


@torch.library.impl(_library, "direct_linear_backward", _kernel)
def _linear_backward(error: Tensor, feedback: Tensor, input_shape: Sequence[int]) -> Tensor:
    return reference.direct_linear_backward(error, feedback, input_shape)


@torch.library.register_fake("bionas_fast::direct_conv_backward", lib=_library)
@torch.library.register_fake("bionas_fast::direct_linear_backward", lib=_library)
def _direct_backward_fake(error: Tensor, feedback: Tensor, input_shape: Sequence[int], *geometry: Any) -> Tensor:
    return error.new_empty(tuple(input_shape))


def _direct_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, feedback, *ctx.geometry = inputs
    ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, feedback)
    ctx.input_shape = input.shape


def _feedback_gradient(error: Tensor, input: Tensor, feedback: Tensor, geometry: Sequence[Any]) -> Tensor:
    if not geometry:
        return reference.direct_linear_feedback_gradient(error, input)
    size, *per_dimension = geometry
    window = Window(*per_dimension)
    return reference.direct_conv_feedback_gradient(error, input, feedback.shape[2:], size, window)


def _direct_backward(
    op: Callable[..., Tensor], plain: Callable[..., Tensor]
) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        input, feedback = ctx.saved_tensors
        # Under create_graph plain PyTorch runs, which can be differentiated.
        run = plain if torch.is_grad_enabled() else op
        down = run(error, feedback, ctx.input_shape, *ctx.geometry) if ctx.needs_input_grad[0] else None
        learned = None if input is None else _feedback_gradient(error, input, feedback, ctx.geometry)
        return down, learned, *[None] * len(ctx.geometry)

    return backward


for _name, _plain in (("direct_conv", _conv_backward), ("direct_linear", _linear_backward)):
    torch.library.register_autograd(
        f"bionas_fast::{_name}",
        _direct_backward(getattr(torch.ops.bionas_fast, f"{_name}_backward"), _plain),
        setup_context=_direct_setup_context,
        lib=_library,
    )
