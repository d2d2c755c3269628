"""Learned feedback: parameters B that no loss depends on, and whose gradient follows from that of the weights.

:func:`couple` hands the gradient of the weights on to both. ``B.grad`` then stands where optimisers, weight decay,
clipping, loss scalers, gradient accumulation and distributed averages expect the gradient of a parameter. Kolen-Pollack
learning is no more than this: the same gradient, the same optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bionas_fast import backends, rules
from bionas_fast.errors import expect_type
from bionas_fast.nn.error_path import ErrorPath
from bionas_fast.ops.feedback import draws, transforms
from bionas_fast.rules import FeedbackState, Law, Rule


class Part(NamedTuple):
    """A layer whose rule runs code of its own, among the layers whose weights are concatenated in one tensor.

    Attributes:
        rule: its rule.
        law: the initial law of its weights.
        shape: the shape of its weight.
        start: the offset of its weight.
        number: its row in the streams of the layers.
        filters: the dimension of the weight that numbers its filters.
        groups: the number of groups into which this dimension is divided.
    """

    rule: str
    law: Law
    shape: tuple[int, ...]
    start: int = 0
    number: int = 0
    filters: int = 0
    groups: int = 1

    def state(self, stored: Tensor | None, stream: Tensor | None, dtype: torch.dtype) -> FeedbackState:
        """Build the argument of the rule.

        Args:
            stored: the stored tensor of this layer.
            stream: the seed and draw of this layer, int64 [2], or of all layers, [layers, 2].
            dtype: of the random numbers.
        """
        if stream is not None and stream.dim() > 1:
            stream = stream[self.number]
        stored = None if stored is None else stored.view(self.shape)
        uniform, fixed = partial(_uniform, stream, dtype, self.shape), partial(_fixed, stream, dtype)
        return FeedbackState(self.law, stored, uniform, fixed, self.filters, self.groups)


def _uniform(stream: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    assert stream is not None
    return draws.uniform(shape, stream).to(dtype)


def _fixed(stream: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    assert stream is not None
    # A draw that no training reaches: other tensors are drawn from the first ones.
    last = torch.stack([stream[0], torch.full_like(stream[0], 2**32 - 1)])
    return draws.uniform(shape, last).to(dtype)


def couple(weight: Tensor, feedback: Tensor, parts: tuple[Part, ...], stream: Tensor | None = None) -> Tensor:
    """Return the weight for a pass, whose gradient gives that of the learned feedback, too (:meth:`Rule.update`).

    Args:
        weight: the weight of one layer, or those of several, flat.
        feedback: the learned feedback, shaped like the weight of one layer, or flat, part by part.
        parts: the layers with learned feedback.
        stream: the seed and draw of the layer, int64 [2], or of all layers, [layers, 2]; None if no rule draws.
    """
    if backends.traced() and not transforms.active():
        return torch.ops.bionas_fast.couple(weight, feedback, stream, *_flat(parts))
    return _Couple.apply(weight, feedback, stream, parts)


class _Couple(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, feedback: Tensor, stream: Tensor | None, parts: tuple[Part, ...]) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, feedback, stream, parts = inputs
        _save(ctx, weight, feedback, stream, parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, grad), None, None

    @staticmethod
    def jvp(ctx: Any, weight: Tensor | None, *_: None) -> Tensor | None:
        return None if weight is None else weight.view_as(weight)


def _save(ctx: Any, weight: Tensor, feedback: Tensor, stream: Tensor | None, parts: tuple[Part, ...]) -> None:
    ctx.parts, ctx.shape = parts, feedback.shape
    # Tensors that no rule reads may change before the backward pass.
    reads = any(type(rules.get(part.rule)).update is not Rule.update for part in parts)
    saved = (weight, feedback, None if stream is None else stream.clone()) if reads else (None, None, None)
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute the gradients of the weight and of the feedback."""
    if not ctx.needs_input_grad[1]:
        return grad, None
    weight, feedback, stream = ctx.saved_tensors
    parts: tuple[Part, ...] = ctx.parts
    grads = list(_weights(grad, parts))
    if weight is not None:
        lengths = [math.prod(part.shape) for part in parts]
        own = feedback.detach().reshape(-1).split(lengths)
        for k, (part, w, b) in enumerate(zip(parts, _weights(weight, parts), own, strict=True)):
            grads[k] = rules.update_of(rules.get(part.rule), w, grads[k], part.state(b, stream, w.dtype))
    if len(grads) == 1:
        return grad, grads[0].reshape(ctx.shape)
    return grad, torch.cat([own.reshape(-1) for own in grads])


def _weights(tensor: Tensor, parts: Sequence[Part]) -> Iterator[Tensor]:
    """Yield the tensor of each part, in its shape."""
    for part in parts:
        if tensor.shape == part.shape:
            yield tensor
        else:
            yield tensor[part.start : part.start + math.prod(part.shape)].view(part.shape)


# The same as a registered op, for tracers. An op returns no view of its arguments.

_library = torch.library.Library("bionas_fast", "FRAGMENT")
_library.define(
    "couple(Tensor weight, Tensor feedback, Tensor? stream, str rules, float[] bounds, float[] scales, int[] sizes, "
    "int[] dims, int[] starts, int[] numbers, int[] filters, int[] groups) -> Tensor"
)


def _flat(parts: Sequence[Part]) -> tuple[Any, ...]:
    """Flatten the parts to the arguments of the schema."""
    return (
        " ".join(part.rule for part in parts),  # torch.jit.trace records no lists of names
        [part.law.bound for part in parts],
        [part.law.scale for part in parts],
        [size for part in parts for size in part.shape],
        [len(part.shape) for part in parts],
        [part.start for part in parts],
        [part.number for part in parts],
        [part.filters for part in parts],
        [part.groups for part in parts],
    )


def _read(flat: Sequence[Any]) -> tuple[Part, ...]:
    names, bounds, scales, sizes, dims, *places = flat
    left = iter(sizes)
    shapes = [tuple(next(left) for _ in range(count)) for count in dims]
    laws = [Law(bound, scale) for bound, scale in zip(bounds, scales, strict=True)]
    return tuple(Part(*fields) for fields in zip(names.split(), laws, shapes, *places, strict=True))


@torch.library.impl(_library, "couple", "CompositeExplicitAutograd")
@torch.library.register_fake("bionas_fast::couple", lib=_library)
def _copy(weight: Tensor, *_: Any) -> Tensor:
    return weight.clone()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, feedback, stream, *flat = inputs
    _save(ctx, weight, feedback, stream, _read(flat))


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, grad), *[None] * 10


torch.library.register_autograd("bionas_fast::couple", _differentiate, setup_context=_setup_context, lib=_library)


def learned_feedback(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model that are learned feedback, and so no weights of it.

    Args:
        model: any module. Its layers under a rule that learns B, such as ``kp``, have one each.
    """
    expect_type("model", model, nn.Module)
    found = [
        parameter
        for module in model.modules()
        if isinstance(module, ErrorPath)
        for name in module.learned_parameters
        if (parameter := module._parameters.get(name)) is not None
    ]
    return list(dict.fromkeys(found))


def without_feedback(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of a model's parameters that are no learned feedback."""
    learned = {id(parameter) for parameter in learned_feedback(model)}
    return [parameter for parameter in parameters if id(parameter) not in learned]


def clip_gradients(model: nn.Module, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of a model's parameters so that the norm of the weights' gradients is at most ``max_norm``.

    Learned feedback is scaled by the same factor, which it does not influence: W takes the steps that it takes without.

    Returns:
        The norm of the gradients of the weights before.
    """
    parameters = list(parameters)
    weights = without_feedback(model, parameters)
    norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
