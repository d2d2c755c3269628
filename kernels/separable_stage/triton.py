"""Separable stages in Triton, specified by :mod:`.reference`.

Forward, one kernel computes the depthwise output block by block and multiplies it by the pointwise weight in registers.
Backward, the error below the pointwise feedback is written to memory once, because all taps of the transposed depthwise
convolution read each position; the depthwise output is recomputed. All branches of a stage share each launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..launching import ROW_LIMIT, fits, grid, locate, product_precision
from ..partial_sums.triton import add_up
from ..records import Affine, Prologue, Stage, StageGradients, StageWeights, Sums
from ..tables import table
from . import reference
from .triton_kernels import (
    DILATIONS,
    DTYPES,
    GROUP,
    KERNELS,
    STRIDES,
    configurations,
    error_kernel,
    error_options,
    input_kernel,
    input_options,
    stage_kernel,
    stage_options,
    weight_gradient_kernel,
    weight_options,
)

__all__ = [
    "Delta",
    "PartialGradients",
    "allocate",
    "backward",
    "configurations",
    "forward",
    "gradients",
    "partial_backward",
    "partial_forward",
    "supports",
    "write",
]

#: Programs of a launch: several for each place in which one can run.
PROGRAMS = 4096
#: Programs that sum weight gradients: several per multiprocessor, but few enough that their partial sums stay small.
WEIGHT_PROGRAMS = 2048


def forward(x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None) -> tuple[Tensor, Sums]:
    """Compute z [K, N, H_out, W_out, C] and its sums; arguments as in :func:`.reference.forward`."""
    z, sums = partial_forward(x, weights, stage, affine)
    return z, sums.whole()


def partial_forward(
    x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None
) -> tuple[Tensor, Sums]:
    """Compute z and, where the kernel runs, its sums over blocks of positions."""
    if not supports(x, stage):
        return reference.forward(x, weights, stage, affine)
    z, sums = allocate(x, weights, stage, len(stage.kernels))
    write(z, sums, x, weights, stage, affine)
    return z, Sums(*sums.unbind())


def allocate(x: Tensor, weights: StageWeights, stage: Stage, branches: int) -> tuple[Tensor, Tensor]:
    """Allocate z [branches, N, H_out, W_out, C_out] and sums over blocks of positions, [2, branches, blocks, C_out]."""
    _, outputs, inputs = weights.pointwise.shape
    images, height, width = x.shape[-4:-1]
    z = x.new_empty(branches, images, triton.cdiv(height, stage.stride), triton.cdiv(width, stage.stride), outputs)
    options = stage_options(max(inputs, outputs), product_precision(x.dtype), stage.stride, False)
    groups = z.shape[2] * _columns(z.shape[3])
    blocks = _programs(images, groups, options["BLOCK_G"], PROGRAMS // len(stage.kernels))
    return z, x.new_empty(2, branches, blocks, outputs, dtype=torch.float32)


def write(
    z: Tensor, sums: Tensor, x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None
) -> None:
    """Write z and its sums to these tensors, or to rows of larger ones; the kernel must support the case."""
    branches, outputs, inputs = weights.pointwise.shape
    images, height, width = x.shape[-4:-1]
    options = stage_options(max(inputs, outputs), product_precision(x.dtype), stage.stride, affine is not None)
    scale, shift = _rows(affine, sums)
    with torch.cuda.device_of(x):
        stage_kernel[branches * sums.shape[2], triton.cdiv(outputs, options["BLOCK_O"])](
            p_z=z,
            p_sums=sums,
            p_x=x.contiguous(),
            p_depthwise=weights.depthwise.contiguous(),
            p_pointwise=weights.pointwise.contiguous(),
            p_scale=scale,
            p_shift=shift,
            p_branches=_branches(stage, inputs, x.device),
            branches=branches,
            images=images,
            inputs=inputs,
            outputs=outputs,
            height=height,
            width=width,
            out_height=z.shape[2],
            out_width=z.shape[3],
            own_images=images if x.dim() == 5 else 0,
            sum_rows=sums.stride(0) // sums.stride(1),
            **options,
        )


def backward(
    prologue: Prologue,
    x: Tensor,
    weights: StageWeights,
    feedback: StageWeights,
    stage: Stage,
    affine: Affine | None,
    weight_grads: bool,
) -> StageGradients:
    """Compute the error and the weight gradients of all branches, see :func:`.reference.backward`."""
    grads = partial_backward(prologue, x, weights, feedback, stage, affine, weight_grads)
    total, products = Sums(grads.total, grads.products).whole()
    return grads._replace(total=total, products=products)


def partial_backward(
    prologue: Prologue,
    x: Tensor,
    weights: StageWeights,
    feedback: StageWeights,
    stage: Stage,
    affine: Affine | None,
    weight_grads: bool,
) -> StageGradients:
    """Compute the same with, where the kernels run, sums over blocks of positions."""
    if not supports(x, stage):
        return reference.backward(prologue, x, weights, feedback, stage, affine, weight_grads)
    stacks = {id(grad): grad[None] for grad in prologue.grads}  # those that are the same tensor stay so
    delta = Delta([stacks[id(grad)] for grad in prologue.grads], [prologue.z], prologue.a, prologue.b, prologue.d)
    found = gradients(delta, x, weights, feedback, stage, affine, weight_grads)
    none = x.new_empty(0)
    total, products = found.sums.unbind() if x.dim() == 5 else [none.new_empty(0, dtype=torch.float64)] * 2
    if found.weights is None:
        return StageGradients(found.x, total, products, none, none)
    lengths = [weights.depthwise.numel(), weights.pointwise.numel()]
    depthwise, pointwise = add_up([found.weights], weights.pointwise.dtype).split(lengths)
    return StageGradients(found.x, total, products, depthwise, pointwise.view_as(weights.pointwise))


class Delta(NamedTuple):
    """The gradient of z_k, a[k] · gradient + b[k] · z_k + d[k], as in ``Prologue``.

    Attributes:
        grads, z: stacks [K_i, N, H_out, W_out, C_out] of the gradients and of z; several may be the same tensor.
        a, b, d: [K, C_out].
    """

    grads: Sequence[Tensor]
    z: Sequence[Tensor]
    a: Tensor
    b: Tensor
    d: Tensor


class PartialGradients(NamedTuple):
    """The results of a stage's backward pass as the kernels write them.

    Attributes:
        x: the gradient of the input of ReLU, shaped like x.
        sums: Σ of that gradient, and of its product with ReLU's input, over blocks of positions, [2, K, blocks, C]; for
            shared x, [2, 1, blocks, C].
        weights: depthwise and pointwise weight gradients, flat, of several programs, [programs, L]; None if not
            requested.
    """

    x: Tensor
    sums: Tensor
    weights: Tensor | None


def gradients(
    delta: Delta,
    x: Tensor,
    weights: StageWeights,
    feedback: StageWeights,
    stage: Stage,
    affine: Affine | None,
    weight_grads: bool,
) -> PartialGradients:
    """Compute the error and the weight gradients of all branches; the kernels must support the case."""
    x = x.contiguous()
    branches, outputs, inputs = weights.pointwise.shape
    separate, (_, images, out_height, out_width, _) = x.dim() == 5, delta.z[0].shape
    rows, (height, width) = images * out_height * out_width, x.shape[-3:-1]
    located = locate([*delta.grads, *delta.z], delta.z[0].dtype, x)
    read_delta = {
        **located.arguments("p_maps"),
        "p_places": table(located.pairs(), x.device),
        "p_a": delta.a.float().contiguous(),
        "p_b": delta.b.float().contiguous(),
        "p_d": delta.d.float().contiguous(),
    }
    scale, shift = _rows(affine, read_delta["p_a"])
    read = {"p_x": x, "p_scale": scale, "p_shift": shift, "p_branches": _branches(stage, inputs, x.device)}
    sizes = {"height": height, "width": width, "out_height": out_height, "out_width": out_width}
    precision, kind = product_precision(x.dtype), (stage.stride, affine is not None)
    options = error_options(max(inputs, outputs), precision)
    groups = out_height * _columns(out_width)
    error = delta.z[0].new_empty(branches, rows, inputs)
    partial = None
    with torch.cuda.device_of(x):
        error_kernel[grid(branches, rows, inputs, options)](
            p_error=error,
            p_feedback=feedback.pointwise.contiguous(),
            branches=branches,
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            **read_delta,
            **options,
        )
        if weight_grads:
            options = weight_options(max(inputs, outputs), x.dtype, precision, *kind)
            parts = max(KERNELS) + triton.cdiv(outputs, options["BLOCK_O"])
            parts *= triton.cdiv(inputs, options["BLOCK_C"])
            programs = max(1, _programs(images, groups, options["BLOCK_G"], WEIGHT_PROGRAMS // (branches * parts)))
            lengths = [weights.depthwise.numel(), weights.pointwise.numel()]
            partial = x.new_empty(programs, sum(lengths), dtype=torch.float32)
            depthwise_grads, pointwise_grads = partial.split(lengths, dim=1)
            weight_gradient_kernel[branches, programs, parts](
                p_depthwise_grad=depthwise_grads,
                p_pointwise_grad=pointwise_grads,
                p_error=error,
                p_depthwise=weights.depthwise.contiguous(),
                images=images,
                inputs=inputs,
                outputs=outputs,
                own_images=images if separate else 0,
                weights=partial.shape[1],
                **read_delta,
                **read,
                **sizes,
                **options,
            )
        grad = torch.empty_like(x)
        count, options = branches if separate else 1, input_options(x.dtype, *kind)
        # Of stride 2, a group is a square of two by two positions, as many as there are errors.
        groups = groups if stage.stride == 1 else out_height * out_width
        blocks = _programs(images, groups, options["BLOCK_G"], PROGRAMS // count)
        sums = x.new_empty(2, count, blocks, inputs, dtype=torch.float32)
        input_kernel[count * blocks, triton.cdiv(inputs, options["BLOCK_C"])](
            p_grad=grad,
            p_sums=sums,
            p_error=error,
            p_feedback=feedback.depthwise.contiguous(),
            count=count,
            images=images,
            inputs=inputs,
            shared=branches // count,
            **read,
            **sizes,
            **options,
        )
    return PartialGradients(grad, sums, partial)


def supports(x: Tensor, stage: Stage) -> bool:
    """Whether the kernels support this case; otherwise the reference runs."""
    known = {*stage.kernels} <= {*KERNELS} and {*stage.dilations} <= {*DILATIONS} and stage.stride in STRIDES
    images, height, width = x.shape[-4:-1]
    return known and fits(x, DTYPES) and images * height * _columns(width) < ROW_LIMIT


def _columns(width: int) -> int:
    """Count the groups of positions in a row, as ``columns_of`` of the kernels."""
    return 2 * triton.cdiv(width, 2 * GROUP.value)


def _programs(images: int, groups: int, block: int, wanted: int) -> int:
    """Choose the number of programs that share the positions of all images: one for each block of groups, or fewer.

    A program of several blocks has the same groups in each of its images, so that it locates them once.

    Args:
        groups: those of an image.
        wanted: about how many programs there should be.
    """
    period = groups // math.gcd(groups, block)
    return min(triton.cdiv(images * groups, block), period * max(1, triton.cdiv(wanted, period)))


def _rows(affine: Affine | None, unread: Tensor) -> Affine:
    """Return scale and shift, float32 [K, C]; without an affine map, a tensor that is not read."""
    if affine is None:
        return Affine(unread, unread)
    return Affine(affine.scale.float().contiguous(), affine.shift.float().contiguous())


def _branches(stage: Stage, channels: int, device: torch.device) -> Tensor:
    starts = accumulate((channels * kernel * kernel for kernel in stage.kernels[:-1]), initial=0)
    return table((*zip(stage.kernels, stage.dilations, starts, strict=True),), device)
