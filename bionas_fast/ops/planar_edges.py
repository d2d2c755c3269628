"""Edges of a discrete cell that leave one state: chains of stages on channels-first maps, and the pools beside them.

A stage is a ReLU, a depthwise k×k convolution or none, a pointwise convolution, and batch normalisation; the stride is
1. The compiled kernels take an image through a stage while it is in a cache. Only the maps before the normalisations
are saved; the rest is computed again in the backward pass.

States in bfloat16 make the maps, the results and the errors narrow, too, and on processors with AVX-512-BF16 the
factors of pointwise convolutions (``kernels.maps``); all else is float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast import backends, native
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.kernels.records import Moments
from bionas_fast.ops.feedback import feedback_conv
from bionas_fast.ops.feedback.torch_library import constant_b, make_b, make_each_b

backends.declare("planar_edges", native=native.obstacle)

# `.default` names the overload: torch's overload resolution takes longer than some of the calls.
_ops = torch.ops.bionas_fast_native


class PlanarStage(NamedTuple):
    """One stage.

    Attributes:
        kernel: size of the depthwise kernel, 3, 5 or 7; 0 without one, in the first stage of an edge.
        dilation: of the depthwise kernel.
        weights: depthwise [C, 1, k, k], unless the kernel is 0, and pointwise [C_out, C, 1, 1].
        feedback: the construction of B of each weight in this pass.
        affine: weight and bias of the normalisation, [C_out] each.
        running: its running mean and variance, [C_out] each, and its number of batches, int64; updated in training.
        eps: added to the variance.
        momentum: the share of the new in the running statistics.
    """

    kernel: int
    dilation: int
    weights: tuple[Tensor, ...]
    feedback: tuple[Feedback, ...]
    affine: tuple[Tensor, Tensor]
    running: tuple[Tensor, Tensor, Tensor]
    eps: float
    momentum: float


class _Plan(NamedTuple):
    """The non-tensor arguments, and the tensors that receive no gradient.

    Attributes:
        edges: the number of edges.
        numbers: the stages of each edge, then kernel and dilation of each stage.
        eps, momentum: of each stage.
        running: the running statistics of all stages.
        feedback: the construction of B of each weight.
        training: whether normalisation uses the statistics of the batch.
    """

    edges: int
    numbers: list[int]
    eps: list[float]
    momentum: list[float]
    running: list[Tensor]
    feedback: list[Feedback]
    training: bool


def planar_edges(
    x: Tensor,
    edges: Sequence[Sequence[PlanarStage]],
    into: Sequence[Tensor | None],
    keep: Tensor | None,
    training: bool,
) -> list[Tensor]:
    """Compute into[e] + keep[e] · chain_e(x) for each edge e.

    Args:
        x: the state, float32 or bfloat16 [N, C, H, W] on the CPU, images contiguous.
        edges: the stages of each edge, one or two.
        into: for each edge a tensor [N, C_out, H, W] to add to, or None.
        keep: factors of the outputs, as of drop-path, [edges, N]; None for ones.
        training: whether normalisation uses the statistics of the batch, and updates the running ones.

    Returns:
        One tensor [N, C_out, H, W] per edge, in the dtype of x.
    """
    stages = [stage for chain in edges for stage in chain]
    numbers = [len(chain) for chain in edges]
    for stage in stages:
        numbers += (stage.kernel, stage.dilation)
    plan = _Plan(
        len(edges),
        numbers,
        [stage.eps for stage in stages],
        [stage.momentum for stage in stages],
        [tensor for stage in stages for tensor in stage.running],
        [own for stage in stages for own in stage.feedback],
        training,
    )
    weights = [weight for stage in stages for weight in stage.weights]
    affine = [tensor for stage in stages for tensor in stage.affine]
    base = [None if tensor is None else tensor.to(x.dtype) for tensor in into]
    factors = None if keep is None else keep.float()
    out = _PlanarEdges.apply(plan, x, factors, *base, *weights, *affine)
    return list(out)


def images_contiguous(x: Tensor) -> bool:
    """Whether every image of [N, C, H, W] is contiguous; the batch may be a slice of a larger tensor."""
    _, channels, height, width = x.shape
    _, a, b, c = x.stride()
    return (width == 1 or c == 1) and (height == 1 or b == width) and (channels == 1 or a == height * width)


def _planar(x: Tensor) -> Tensor:
    return x if images_contiguous(x) else x.contiguous()


class _PlanarEdges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, keep: Tensor | None, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        into, params = tensors[: plan.edges], cast("tuple[Tensor, ...]", tensors[plan.edges :])
        count = len(plan.feedback)
        weights = [weight.contiguous() for weight in params[:count]]
        affine = [tensor.contiguous() for tensor in params[count:]]
        factors = x.new_empty(0, dtype=torch.float32) if keep is None else keep
        base = [None if tensor is None else _planar(tensor) for tensor in into]
        out, maps, *moments = _ops.planar_edges.default(
            x, weights, affine, plan.running, plan.numbers, plan.eps, plan.momentum, base, factors, plan.training
        )
        stored = [own.stored for own in plan.feedback]
        drawn = [_draw(own) for own in plan.feedback]
        ctx.save_for_backward(x, factors, *moments, *maps, *params, *stored, *drawn)
        constants = [Feedback(own.mode, None, None, own.bound, own.scale) for own in plan.feedback]
        ctx.plan = plan._replace(feedback=constants, running=[])
        ctx.streams = [own.stream for own in plan.feedback if own.advance and own.stream is not None]
        ctx.set_materialize_grads(False)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        plan: _Plan = ctx.plan
        x, factors, mean, var, *tensors = ctx.saved_tensors
        count, stages = len(plan.feedback), len(plan.eps)
        parts = iter(tensors)
        maps, weights, affine, stored, drawn = (
            [next(parts) for _ in range(size)] for size in (stages, count, 2 * stages, count, count)
        )
        feedback = [own._replace(stored=s, stream=d) for own, s, d in zip(plan.feedback, stored, drawn, strict=True)]
        of_into, needed = ctx.needs_input_grad[3 : 3 + plan.edges], ctx.needs_input_grad[3 + plan.edges :]
        like = (x.shape[0], affine[0].shape[0], *x.shape[2:])
        errors = [x.new_zeros(like) if grad is None else grad for grad in grads]
        if torch.is_grad_enabled():
            given = None if plan.training else Moments(mean, var)
            passed = _differentiable_backward(plan, x, factors, [*weights, *affine], feedback, errors, given)
        else:
            weights = [weight.contiguous() for weight in weights]
            affine = [tensor.contiguous() for tensor in affine]
            down, *found = _ops.planar_edges_backward.default(
                [_planar(grad) for grad in errors], x, maps, (mean, var), weights, make_each_b(weights, feedback),
                affine, plan.numbers, plan.eps, factors, plan.training, any(needed[:count]),
            )  # fmt: skip
            of_weights, of_affine = found
            passed = [down, *(of_weights or [None] * count), *of_affine]
        for stream in ctx.streams:
            stream[1].add_(1)
        down, *of_params = passed
        each = zip((*grads, *of_params), (*of_into, *needed), strict=True)
        return (None, down, None, *(grad if wanted else None for grad, wanted in each))


def _draw(feedback: Feedback) -> Tensor | None:
    """Return a copy of the draw of this pass, which other passes do not advance."""
    stream = feedback.stream
    return None if stream is None or feedback.mode != "drawn_sign" else stream.clone()


def _differentiable_backward(
    plan: _Plan,
    x: Tensor,
    factors: Tensor,
    params: Sequence[Tensor],
    feedback: Sequence[Feedback],
    grads: Sequence[Tensor],
    moments: Moments | None,
) -> list[Tensor | None]:
    """Compute the gradients of x and the parameters in plain PyTorch, so that they can be differentiated."""
    constants = [
        own if own.mode == "weight" else Feedback("stored", constant_b(weight, own))
        for weight, own in zip(params, feedback, strict=False)
    ]
    with torch.enable_grad():
        weights, affine = iter(params[: len(constants)]), iter(params[len(constants) :])
        dtype = torch.promote_types(x.dtype, torch.float32)
        grads = [grad.to(dtype) for grad in grads]
        out = list(_plain(plan, x.to(dtype), weights, affine, iter(constants), moments))
        if factors.numel():
            out = [own * factor[:, None, None, None] for own, factor in zip(out, factors, strict=True)]
        wanted = [tensor for tensor in (x, *params) if tensor.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grads, create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in (x, *params)]


def _plain(
    plan: _Plan,
    x: Tensor,
    weights: Iterator[Tensor],
    affine: Iterator[Tensor],
    feedback: Iterator[Feedback],
    moments: Moments | None,
) -> Iterator[Tensor]:
    """Compute the output of each edge in plain PyTorch, before the factors."""
    lengths, sizes = plan.numbers[: plan.edges], iter(plan.numbers[plan.edges :])
    eps = iter(enumerate(plan.eps))
    for length in lengths:
        out = x
        for _ in range(length):
            kernel, dilation = next(sizes), next(sizes)
            out = F.relu(out)
            if kernel:
                padding, groups = dilation * (kernel // 2), out.shape[1]
                out = feedback_conv(
                    out, next(weights), None, next(feedback), padding=padding, dilation=dilation, groups=groups
                )
            out = feedback_conv(out, next(weights), None, next(feedback))
            index, epsilon = next(eps)
            mean, var = (None, None) if moments is None else (own[index].to(out.dtype) for own in moments)
            out = F.batch_norm(out, mean, var, next(affine), next(affine), moments is None, 0.0, epsilon)
        yield out


class _PlanarPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.stride = stride
        return _ops.planar_pool.default(x, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            with torch.enable_grad():
                out = F.max_pool2d(x, 3, ctx.stride, 1)
                (down,) = torch.autograd.grad(out, x, grad, create_graph=True)
            return down, None
        return _ops.planar_pool_backward.default(_planar(grad), x, ctx.stride), None


def planar_pool(x: Tensor, stride: int) -> Tensor:
    """Apply 3×3 maximum pooling with a padding of 1, to float32 or bfloat16 [N, C, H, W] on the CPU.

    The images are contiguous. Unlike torch's, it saves no indices: the backward pass finds the maxima again. Among
    equal ones the first in row-major order receives the gradient, as in torch.
    """
    return _PlanarPool.apply(x, stride)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, feedback: Feedback) -> Tensor:
        stored, stream = feedback.stored, feedback.stream
        ctx.save_for_backward(weight, stored, _draw(feedback))
        ctx.feedback = feedback._replace(stored=None, stream=None)
        ctx.stream = stream if feedback.advance else None
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, stored, drawn = ctx.saved_tensors
        b = make_b(weight, ctx.feedback._replace(stored=stored, stream=drawn), "native")
        if ctx.stream is not None:
            ctx.stream[1].add_(1)
        return (grad * b.view(-1, 1, 1)).to(grad.dtype), None, None


def planar_identity(x: Tensor, weight: Tensor, feedback: Feedback) -> Tensor:
    """Return x, a view; the error of channel c is multiplied by B[c].

    Args:
        x: [N, C, H, W].
        weight: ones, [C, 1, 1, 1].
        feedback: the construction of B in this pass.
    """
    if feedback.mode == "weight" and not feedback.advance:
        return x
    return _Identity.apply(x, weight, feedback)
