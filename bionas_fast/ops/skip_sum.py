"""The identities of all edges that leave a state: one scaled copy forward, one scaled sum of errors backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def skip_sum(x: Tensor, weights: Tensor, make_feedback: Callable[[], Tensor]) -> Tensor:
    """Σ_r weights[e, r] · x, where rule r sends the error down through B[e, r], channel by channel.

    Args:
        x: [N, H, W, C].
        weights: [E, R].
        make_feedback: called in the backward pass where an error is wanted; B, flat, E · R · C elements.

    Returns:
        [E, N, H, W, C].
    """
    return _SkipSum.apply(x, weights, make_feedback)


class _SkipSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, make_feedback: Callable[[], Tensor]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.make_feedback = make_feedback
        return weights.sum(dim=1).to(x.dtype)[:, None, None, None, None] * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weights = ctx.saved_tensors
        flat = grad.reshape(grad.shape[0], -1)
        grad_weights = (flat @ x.reshape(-1)).to(weights.dtype)[:, None].expand_as(weights)
        if not ctx.needs_input_grad[0]:
            return None, grad_weights, None
        b = ctx.make_feedback().view(*weights.shape, -1)
        scale = torch.einsum("er,erc->ec", weights.to(b.dtype), b).to(grad.dtype)
        return torch.einsum("ec,enhwc->nhwc", scale, grad), grad_weights, None
