"""The specification of a separable stage in plain PyTorch, forward and backward.

Branch k computes z_k = pointwise_k ⋆ depthwise_k ⋆ ReLU(x), or ReLU(scale_k · x_k + shift_k) where it has an input of
its own. Activations are [N, H, W, C]. Weights lie one branch after the other: depthwise in one flat tensor of [C, k, k]
blocks, for kernels may differ, and pointwise as [K, C_out, C_in].

Backward, the gradient of z_k is a_k · g + b_k · z_k + d_k, channel by channel: the backward pass of batch normalisation
is an affine map of the incoming gradient g and of z, and is folded in here. The error travels down through the feedback
weights; the weight gradients are exact (see ``kernels.feedback``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def split_depthwise(depthwise: Tensor, kernels: Sequence[int], channels: int) -> list[Tensor]:
    """The flat tensor as one [C, 1, k, k] a branch."""
    parts = depthwise.split([channels * k * k for k in kernels])
    return [part.view(channels, 1, k, k) for part, k in zip(parts, kernels, strict=True)]


def _seen(x: Tensor, branch: int, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """What ReLU sees, [N, H, W, C]."""
    own = x[branch] if x.dim() == 5 else x
    return own if scale is None or shift is None else own * scale[branch] + shift[branch]


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def forward(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    kernels: Sequence[int],
    dilations: Sequence[int],
    stride: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All branches of a stage.

    Args:
        x: [N, H, W, C], shared by all branches, or [K, N, H, W, C].
        depthwise: flat, Σ_k C · k².
        pointwise: [K, C_out, C_in].
        kernels, dilations: one number a branch; padding keeps the size at stride 1.
        scale, shift: [K, C], or None for none.

    Returns:
        z [K, N, H_out, W_out, C]; Σ z and Σ z² over positions, float64 [K, C].
    """
    channels = pointwise.shape[-1]
    outputs = []
    for k, weight in enumerate(split_depthwise(depthwise, kernels, channels)):
        seen = _nchw(F.relu(_seen(x, k, scale, shift)))
        padding = dilations[k] * (kernels[k] // 2)
        middle = F.conv2d(seen, weight, None, stride, padding, dilations[k], channels)
        outputs.append(F.conv2d(middle, pointwise[k, :, :, None, None]).permute(0, 2, 3, 1))
    z = torch.stack(outputs).contiguous()
    wide = z.double()
    return z, wide.sum(dim=(1, 2, 3)), wide.square().sum(dim=(1, 2, 3))


def backward(
    grads: Sequence[Tensor],
    grad_index: Sequence[int],
    z: Tensor,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    depthwise_feedback: Tensor,
    pointwise_feedback: Tensor,
    kernels: Sequence[int],
    dilations: Sequence[int],
    stride: int,
    scale: Tensor | None,
    shift: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The error and the weight gradients of all branches.

    Args:
        grads: stacks of gradients [K_i, N, H_out, W_out, C], counted through in order.
        grad_index: for each branch the gradient it reads; several may share one.
        a, b, d: [K, C].
        weights: whether weight gradients are wanted.

    Returns:
        The gradient of what ReLU saw, shaped like x; Σ of it and Σ of its product with what ReLU saw, float64 [K, C]
        (empty where x is shared); the gradients of ``depthwise`` and ``pointwise`` (empty where not wanted).
    """
    channels = pointwise.shape[-1]
    each = [one for stack in grads for one in stack]
    blocks = split_depthwise(depthwise, kernels, channels)
    feedback = split_depthwise(depthwise_feedback, kernels, channels)
    errors, products, depthwise_grads, pointwise_grads = [], [], [], []
    for k in range(len(kernels)):
        seen = _seen(x, k, scale, shift)
        relu = _nchw(F.relu(seen))
        geometry = ([stride, stride], [dilations[k] * (kernels[k] // 2)] * 2, [dilations[k]] * 2, False, [0, 0])
        delta = _nchw(a[k] * each[grad_index[k]] + b[k] * z[k] + d[k])
        middle = F.conv2d(relu, blocks[k], None, *geometry[:3], channels) if weights else torch.empty_like(delta)
        error, pointwise_grad, _ = torch.ops.aten.convolution_backward(
            delta,
            middle,
            pointwise_feedback[k, :, :, None, None],
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [True, weights, False],
        )
        down, depthwise_grad, _ = torch.ops.aten.convolution_backward(
            error, relu, feedback[k], None, *geometry, channels, [True, weights, False]
        )
        errors.append(down.permute(0, 2, 3, 1) * (seen > 0))
        products.append((errors[-1].double() * seen).sum(dim=(0, 1, 2)))
        if weights:
            depthwise_grads.append(depthwise_grad.flatten())
            pointwise_grads.append(pointwise_grad.flatten(1))
    none = x.new_empty(0)
    depthwise_grad = torch.cat(depthwise_grads) if weights else none
    pointwise_grad = torch.stack(pointwise_grads) if weights else none
    if x.dim() == 4:
        return sum(errors[1:], errors[0]).contiguous(), none.double(), none.double(), depthwise_grad, pointwise_grad
    grad_x = torch.stack(errors).contiguous()
    return grad_x, grad_x.double().sum(dim=(1, 2, 3)), torch.stack(products), depthwise_grad, pointwise_grad
