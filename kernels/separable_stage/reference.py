"""The specification of a separable stage in plain PyTorch, forward and backward.

Branch k computes z_k = pointwise_k ⋆ depthwise_k ⋆ ReLU(x), or with ReLU(scale_k · x_k + shift_k) if it has a separate
input. Activations are [N, H, W, C]. The weights of the branches are concatenated: depthwise in one flat tensor of
[C, k, k] blocks, because kernel sizes may differ, and pointwise as [K, C_out, C_in].

Backward, the gradient of z is given as a :class:`Prologue`: the backward pass of batch normalisation is an affine map
of the incoming gradient and of z, and is fused here. The error is propagated through the feedback weights; the weight
gradients are exact (see ``kernels.feedback``).

Maps may be narrower than the weights, see :mod:`..maps`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..records import Affine, Prologue, Stage, StageGradients, StageWeights, Sums


def split_depthwise(depthwise: Tensor, kernels: Sequence[int], channels: int) -> list[Tensor]:
    """Split the flat tensor into one [C, 1, k, k] per branch."""
    parts = depthwise.split([channels * k * k for k in kernels])
    return [part.view(channels, 1, k, k) for part, k in zip(parts, kernels, strict=True)]


def _seen(x: Tensor, branch: int, affine: Affine | None, dtype: torch.dtype) -> Tensor:
    """Compute the input of ReLU, [N, H, W, C]."""
    own = (x[branch] if x.dim() == 5 else x).to(dtype)
    return own if affine is None else own * affine.scale[branch] + affine.shift[branch]


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def forward(x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None) -> tuple[Tensor, Sums]:
    """Compute all branches of a stage.

    Args:
        x: [N, H, W, C], shared by all branches, or [K, N, H, W, C].
        affine: applied to x before ReLU; None for the identity.

    Returns:
        z [K, N, H_out, W_out, C] in the dtype of x, and the sums of z before it is rounded.
    """
    channels = weights.pointwise.shape[-1]
    outputs = []
    for k, weight in enumerate(split_depthwise(weights.depthwise, stage.kernels, channels)):
        seen = _nchw(F.relu(_seen(x, k, affine, weight.dtype)))
        dilation = stage.dilations[k]
        padding = dilation * (stage.kernels[k] // 2)
        middle = F.conv2d(seen, weight, None, stage.stride, padding, dilation, channels)
        outputs.append(F.conv2d(middle, weights.pointwise[k, :, :, None, None]).permute(0, 2, 3, 1))
    z = torch.stack(outputs).contiguous()
    wide = z.double()
    return z.to(x.dtype), Sums(wide.sum(dim=(1, 2, 3)), wide.square().sum(dim=(1, 2, 3)))


def backward(
    prologue: Prologue,
    x: Tensor,
    weights: StageWeights,
    feedback: StageWeights,
    stage: Stage,
    affine: Affine | None,
    weight_grads: bool,
) -> StageGradients:
    """Compute the error and the weight gradients of all branches.

    Args:
        prologue: the gradient of z.
        feedback: shaped like ``weights``.
        weight_grads: whether weight gradients are requested.
    """
    channels = weights.pointwise.shape[-1]
    blocks = split_depthwise(weights.depthwise, stage.kernels, channels)
    down_blocks = split_depthwise(feedback.depthwise, stage.kernels, channels)
    errors, products = [], []
    depthwise_grads, pointwise_grads = [], []
    for k, dilation in enumerate(stage.dilations):
        seen = _seen(x, k, affine, blocks[k].dtype)
        relu = _nchw(F.relu(seen))
        step, padding = [stage.stride] * 2, [dilation * (stage.kernels[k] // 2)] * 2
        spread = [dilation] * 2
        delta = _nchw(prologue.delta(k)).to(seen.dtype)
        middle = torch.empty_like(delta)
        if weight_grads:
            middle = F.conv2d(relu, blocks[k], None, step, padding, spread, channels)
        error, pointwise_grad, _ = torch.ops.aten.convolution_backward(
            delta,
            middle,
            feedback.pointwise[k, :, :, None, None],
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [True, weight_grads, False],
        )
        down, depthwise_grad, _ = torch.ops.aten.convolution_backward(
            error,
            relu,
            down_blocks[k],
            None,
            step,
            padding,
            spread,
            False,
            [0, 0],
            channels,
            [True, weight_grads, False],
        )
        errors.append(down.permute(0, 2, 3, 1) * (seen > 0))
        products.append((errors[-1].double() * seen).sum(dim=(0, 1, 2)))
        if weight_grads:
            depthwise_grads.append(depthwise_grad.flatten())
            pointwise_grads.append(pointwise_grad.flatten(1))
    none = x.new_empty(0)
    depthwise = torch.cat(depthwise_grads) if weight_grads else none
    pointwise = torch.stack(pointwise_grads) if weight_grads else none
    if x.dim() == 4:
        grad_x = sum(errors[1:], errors[0]).contiguous()
        return StageGradients(grad_x, none.double(), none.double(), depthwise, pointwise)
    grad_x = torch.stack(errors).contiguous()
    return StageGradients(grad_x, grad_x.double().sum(dim=(1, 2, 3)), torch.stack(products), depthwise, pointwise)
