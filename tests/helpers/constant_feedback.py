"""Layers whose backward pass is written out by hand with a constant B: the oracle of derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Tensor]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor, b: Tensor, run: Run) -> Tensor:
        ctx.save_for_backward(x, w, bias, b)
        ctx.run = run
        return run(x, w, bias).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, bias, b = ctx.saved_tensors
        # y is linear in x and in W: each derivative is PyTorch's own of y for one of them, and in it a function of the
        # error and of the other one alone.
        with torch.enable_grad():
            anywhere, weight, shift = (torch.zeros_like(t, requires_grad=True) for t in (x, w, bias))
            (down,) = torch.autograd.grad(ctx.run(anywhere, b, None), anywhere, grad, create_graph=True)
            own = torch.autograd.grad(ctx.run(x, weight, shift), (weight, shift), grad, create_graph=True)
        return down, *own, None, None


def through(run: Run, x: Tensor, w: Tensor, bias: Tensor, b: Tensor) -> Tensor:
    """Compute run(x, w, bias), whose error passes through the constant ``b``.

    Args:
        run: a function of PyTorch, linear in x and in w plus bias.
    """
    return _Layer.apply(x, w, bias, b.detach(), run)
