"""Separable stages in Triton, specified by :mod:`.reference`.

Forward, one kernel computes the depthwise output block by block and multiplies it by the pointwise weight in registers.
Backward, the error below the pointwise feedback is written to memory once, because all taps of the transposed depthwise
convolution read each position; the depthwise output is recomputed. All branches of a stage share each launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ..launching import fits, grid, locate, product_precision
from ..records import Affine, Prologue, Stage, StageGradients, StageWeights, Sums
from ..tables import filled, table
from . import reference
from .triton_kernels import (
    DTYPES,
    STRIDES,
    TAPS,
    configurations,
    error_kernel,
    input_kernel,
    input_options,
    product_options,
    stage_kernel,
    weight_gradient_kernel,
    weight_options,
)

__all__ = [
    "allocate",
    "backward",
    "configurations",
    "forward",
    "partial_backward",
    "partial_forward",
    "supports",
    "write",
]

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
    rows = z.shape[1:-1].numel()
    block = product_options(max(inputs, outputs), product_precision(x.dtype))["BLOCK_R"]
    return z, x.new_empty(2, branches, triton.cdiv(rows, block), outputs, dtype=torch.float32)


def write(
    z: Tensor, sums: Tensor, x: Tensor, weights: StageWeights, stage: Stage, affine: Affine | None = None
) -> None:
    """Write z and its sums to these tensors, or to rows of larger ones; the kernel must support the case."""
    branches, outputs, inputs = weights.pointwise.shape
    images, height, width = x.shape[-4:-1]
    rows = z.shape[1:-1].numel()
    options = product_options(max(inputs, outputs), product_precision(x.dtype))
    scale, shift = _rows(affine, weights.pointwise)
    with torch.cuda.device_of(x):
        stage_kernel[grid(branches, rows, outputs, options)](
            p_z=z,
            p_sums=sums,
            p_x=x.contiguous(),
            p_depthwise=weights.depthwise.contiguous(),
            p_pointwise=weights.pointwise.contiguous(),
            p_scale=scale,
            p_shift=shift,
            p_branches=_branches(stage, inputs, x.device),
            branches=branches,
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            height=height,
            width=width,
            out_height=z.shape[2],
            out_width=z.shape[3],
            stride=stage.stride,
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
    x, z = x.contiguous(), prologue.z.contiguous()
    branches, outputs, inputs = weights.pointwise.shape
    separate, rows = x.dim() == 5, z[0, ..., 0].numel()
    images, height, width = x.shape[-4:-1]
    grads = locate(_stacked(prologue.grads), z.dtype, z)
    delta = {
        **grads.arguments("p_grads"),
        "p_places": table(grads.places, x.device),
        "p_z": z,
        "p_a": prologue.a.float().contiguous(),
        "p_b": prologue.b.float().contiguous(),
        "p_d": prologue.d.float().contiguous(),
    }
    scale, shift = _rows(affine, weights.pointwise)
    read = {"p_x": x, "p_scale": scale, "p_shift": shift, "p_branches": _branches(stage, inputs, x.device)}
    sizes = {"height": height, "width": width, "out_height": z.shape[2], "out_width": z.shape[3]}
    options = product_options(max(inputs, outputs), product_precision(x.dtype))
    error, none = z.new_empty(branches, rows, inputs), x.new_empty(0)
    depthwise_grad = pointwise_grad = none
    with torch.cuda.device_of(x):
        error_kernel[grid(branches, rows, inputs, options)](
            p_error=error,
            p_feedback=feedback.pointwise.contiguous(),
            branches=branches,
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            **delta,
            **options,
        )
        if weight_grads:
            pairs = triton.cdiv(inputs, options["BLOCK_C"]) * triton.cdiv(outputs, options["BLOCK_C"])
            programs = max(1, min(triton.cdiv(rows, options["BLOCK_R"]), WEIGHT_PROGRAMS // (branches * pairs)))
            lengths = [weights.depthwise.numel(), weights.pointwise.numel()]
            partial = x.new_empty(programs, sum(lengths), dtype=torch.float32)
            depthwise_grads, pointwise_grads = partial.split(lengths, dim=1)
            weight_gradient_kernel[branches, programs, pairs](
                p_depthwise_grad=depthwise_grads,
                p_pointwise_grad=pointwise_grads,
                p_error=error,
                p_depthwise=weights.depthwise.contiguous(),
                rows=rows,
                inputs=inputs,
                outputs=outputs,
                stride=stage.stride,
                own_images=images if separate else 0,
                weights=partial.shape[1],
                **delta,
                **read,
                **sizes,
                **weight_options(max(inputs, outputs), product_precision(x.dtype)),
            )
            depthwise_grad, pointwise_grad = partial.sum(dim=0).to(weights.pointwise.dtype).split(lengths)
            pointwise_grad = pointwise_grad.view_as(weights.pointwise)
        grad = torch.empty_like(x)
        count, rows = branches if separate else 1, images * height * width
        options = input_options(stage.stride)
        sums = x.new_empty(2, count, triton.cdiv(rows, options["BLOCK_R"]), inputs, dtype=torch.float32)
        input_kernel[grid(count, rows, inputs, options)](
            p_grad=grad,
            p_sums=sums,
            p_error=error,
            p_feedback=feedback.depthwise.contiguous(),
            count=count,
            rows=rows,
            inputs=inputs,
            shared=branches // count,
            **read,
            **sizes,
            **options,
        )
    total, products = sums.unbind() if separate else [none.new_empty(0, dtype=torch.float64)] * 2
    return StageGradients(grad, total, products, depthwise_grad, pointwise_grad)


def _stacked(grads: Sequence[Tensor]) -> list[Tensor]:
    """Turn maps into stacks of one; those that are the same tensor stay so."""
    stacks = {id(grad): grad[None] for grad in grads}
    return [stacks[id(grad)] for grad in grads]


def supports(x: Tensor, stage: Stage) -> bool:
    """Whether the kernels support this case; otherwise the reference runs."""
    return fits(x, DTYPES) and stage.stride in STRIDES and max(stage.kernels) ** 2 <= TAPS


def _rows(affine: Affine | None, pointwise: Tensor) -> Affine:
    """Return scale and shift, float32 [K, C]; without an affine map, those of the identity."""
    if affine is not None:
        return Affine(affine.scale.float().contiguous(), affine.shift.float().contiguous())
    shape = (pointwise.shape[0], pointwise.shape[2])
    return Affine(filled(1, shape, pointwise.device), filled(0, shape, pointwise.device))


def _branches(stage: Stage, channels: int, device: torch.device) -> Tensor:
    starts = accumulate((channels * kernel * kernel for kernel in stage.kernels[:-1]), initial=0)
    return table((*zip(stage.kernels, stage.dilations, starts, strict=True),), device)
