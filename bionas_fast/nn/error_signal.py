"""The signals that take the place of the error at the logits in direct feedback.

The gradient of cross-entropy for the logits of a sample with one target is e = c · (p - onehot(target)), p the softmax
and c the weight of the sample in the loss: 1/N in a mean over N samples, times the factor of a loss scaler or of a part
of a batch. Only its entry of the target is negative. A signal replaces p - onehot(target) and retains c, so that it
means the same in a sum, a mean, mixed precision, and several processes (Frenkel, Lefebvre and Bol 2021):

- ``target``: -onehot(target), direct random target projection;
- ``sign``: sign(p - onehot(target)), the sign of the error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bionas_fast import backends, torch_private
from bionas_fast.errors import InputError

_ONE_TARGET = (
    "the rules drtp and sdfa need the gradient of cross-entropy for one target per sample, whose only negative entry "
    "is that of the target, got {}: no label smoothing, mixup, CutMix or other loss"
)


def error_signal(error: Tensor, logits: Tensor, dim: int, signal: str) -> Tensor:
    """Compute the signal that replaces the error at the logits.

    A sample whose error has no unique smallest entry, such as an ignored one with an error of 0, has the signal 0. One
    with several negative entries is refused. On the CPU this is an error; on other devices and in compiled graphs,
    which must not wait for a value, its signal is NaN, which ends a training of this package.

    Args:
        error: the gradient for the logits, of their shape.
        logits: [N, classes], or of more dimensions.
        dim: the dimension of the classes.
        signal: one of :data:`bionas_fast.rules.SIGNALS`.

    Raises:
        InputError: fewer than two classes; an error with several negative entries.
    """
    if error.shape[dim] < 2:
        raise InputError(_ONE_TARGET.format("logits of one class"))
    e = error if error.dtype == torch.float64 else error.float()
    smallest, index = e.topk(2, dim, largest=False)
    low, second = smallest.split(1, dim)
    negative = second < 0
    if _may_wait(e) and bool(negative.any()):
        raise InputError(_ONE_TARGET.format("an error with several"))
    target = torch.zeros_like(e).scatter(dim, index.narrow(dim, 0, 1), 1)
    others = 1 - target
    p = logits.to(e.dtype).softmax(dim)
    tiny = torch.finfo(e.dtype).tiny
    weight = (e * others).sum(dim, keepdim=True) / (p * others).sum(dim, keepdim=True).clamp_min(tiny)
    weight = weight.masked_fill(low == second, 0).masked_fill(negative, torch.nan)
    return (weight * (-target if signal == "target" else others - target)).to(error.dtype)


def _may_wait(error: Tensor) -> bool:
    return error.device.type == "cpu" and not backends.traced() and not torch_private.in_transform()


class ErrorSignal(torch.autograd.Function):
    """The identity of ``x`` in the forward pass; in the backward pass, its error becomes a signal."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, logits: Tensor, dim: int, signal: str) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, logits, ctx.dim, ctx.signal = inputs
        ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        with torch.no_grad():  # piecewise constant, whatever the error depends on
            signal = error_signal(error.detach(), logits.detach(), ctx.dim, ctx.signal)
        return signal, None, None, None
