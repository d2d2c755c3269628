"""The feedback ops inside transforms of torch.func, and under forward-mode differentiation.

Plain PyTorch throughout, so that vmap batches and every derivative exists. B is a constant in all of them (except for
B = W). A tangent passes through B as well: the forward mode is the transpose of the reverse mode, and ``jacfwd`` equals
``jacrev``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bionas_fast import torch_private
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.ops.feedback.torch_library import Arguments, constant_b

_library = torch.library.Library("bionas_fast", "FRAGMENT")
# Returns nothing: transforms refuse in-place ops on captured tensors that return them.
_library.define("advance_stream(Tensor(a!) stream) -> ()")


@torch.library.impl(_library, "advance_stream", "CompositeExplicitAutograd")
def _advance(stream: Tensor) -> None:
    stream.select(-1, 1).add_(1)


@torch.library.register_fake("bionas_fast::advance_stream", lib=_library)
def _advance_fake(stream: Tensor) -> None:
    return None


def _advance_batch(info: Any, in_dims: tuple[int | None], stream: Tensor) -> tuple[None, None]:
    """Advance every stream of a batch once; a stream that a batch shares is not batched, and advances once as well."""
    if in_dims[0] is not None:
        stream = stream.movedim(in_dims[0], 0)
    torch.ops.bionas_fast.advance_stream(stream)
    return None, None


torch.library.register_vmap("bionas_fast::advance_stream", _advance_batch, lib=_library)


def active() -> bool:
    """Whether the functions of this module run: a compiler has transforms of its own."""
    return torch_private.in_transform() and not torch.compiler.is_compiling()


def feedback_layer(input: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """Run ``feedback_conv``, ``feedback_linear`` or ``feedback_conv_transpose``, depending on the arguments."""
    mode, stored, stream, bound, scale, advance = arguments.feedback
    constants = arguments.having(Feedback(mode, None, None, bound, scale, advance))
    stream = stream if mode == "drawn_sign" or advance else None
    return _Layer.apply(input, weight, bias, stored if mode.startswith("stored") else None, stream, constants)


class _Layer(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stored: Tensor | None,
        stream: Tensor | None,
        arguments: Arguments,
    ) -> Tensor:
        return _without_view(arguments.plain(input, weight, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias, stored, stream, ctx.arguments = inputs
        # The draw of this pass, and the stream itself; other passes may advance it in between.
        draw = None if stream is None else stream.clone()
        advanced = _without_view(stream) if stream is not None and ctx.arguments.feedback.advance else None
        # The same for both: PyTorch's generated vmap rule keeps one list of their dimensions.
        saved = input, weight, stored, draw, advanced
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, stored, draw, advanced = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
        b = _feedback(ctx.arguments, weight, stored, draw) if mask[0] else weight.detach()
        # oneDNN needs the same layout in both (torch 2.14).
        grads = ctx.arguments.plain_backward(grad.contiguous(), input.contiguous(), b, mask)
        if advanced is not None:
            torch.ops.bionas_fast.advance_stream(advanced)
        return *(g if wanted else None for g, wanted in zip(grads, mask, strict=True)), None, None, None

    @staticmethod
    def jvp(ctx: Any, input: Tensor | None, weight: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        x, w, stored, draw, _ = ctx.saved_tensors
        tangent = ctx.arguments.plain(x, torch.zeros_like(w) if weight is None else weight, bias)
        if input is None:
            return tangent
        return tangent + ctx.arguments.plain(input, _feedback(ctx.arguments, w, stored, draw), None)


def _feedback(arguments: Arguments, weight: Tensor, stored: Tensor | None, draw: Tensor | None) -> Tensor:
    return constant_b(weight, arguments.feedback._replace(stored=stored, stream=draw))


def _without_view(tensor: Tensor) -> Tensor:
    """Return a tensor of the same memory that is no view and counts its changes by itself."""
    return torch.ops.aten._unsafe_view.default(tensor, tensor.shape)
