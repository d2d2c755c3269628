"""Numbers of operations of the compiled kernels, equal to those of the convolutions that they replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bionas_fast import operation_counts

#: Counts the operations for the shapes of the input, the weight and the output of a convolution.
Count = Callable[[list[int], list[int], list[int]], int]


def _backward(error: bool, weight_grads: bool) -> Count:
    def count(input: list[int], weight: list[int], out: list[int]) -> int:
        return operation_counts.convolution_backward(out, input, weight, [error, weight_grads])

    return count


def _stage(size: Sequence[int], pointwise: Tensor, stride: int, kernels: Sequence[int], count: Count) -> int:
    """Count the operations of separable branches.

    Args:
        size: [N, H, W] of the input.
        pointwise: [K, C_out, C_in].
        kernels: one number per branch.
    """
    images, height, width = size
    outputs, inputs = pointwise.shape[1:]
    seen = [images, inputs, height, width]
    middle, out = ([images, c, -(-height // stride), -(-width // stride)] for c in (inputs, outputs))
    depthwise = sum(count(seen, [inputs, 1, kernel, kernel], middle) for kernel in kernels)
    return depthwise + len(kernels) * count(middle, [outputs, inputs, 1, 1], out)


def _edges(x: Tensor, weights: Sequence[Tensor], plan: Sequence[int], side_by_side: int, count: Count) -> int:
    # As SeparablePlan.encode writes it.
    branches = len(plan) // 3 - 1
    twice, stride = plan[1], plan[2 + branches]
    kernels = plan[3 + branches : 3 + 2 * branches]
    images, height, width = x.shape[0] * side_by_side, *x.shape[1:3]
    last = images, -(-height // stride), -(-width // stride)
    first = _stage((images, height, width), weights[1], stride, kernels, count)
    return first + _stage(last, weights[3], 1, kernels[:twice], count)


def _reductions(x: Tensor, weights: Sequence[Tensor], side_by_side: int, count: Count) -> int:
    images, height, width = x.shape[0] * side_by_side, *x.shape[1:3]
    small = -(-height // 2), -(-width // 2)
    total = 0
    for weight in weights:
        reductions, outputs, inputs = weight.shape
        shapes = [images, inputs, height, width], [outputs, inputs, 1, 1], [images, outputs, *small]
        total += reductions * count(*shapes)
    return total


def _stage_forward(x: Tensor, weights: Sequence[Tensor], stage: Sequence[int], *_: Any, out_val: Any) -> int:
    kernels = stage[1 : 1 + len(stage) // 2]
    return _stage(x.shape[-4:-1], weights[1], stage[0], kernels, operation_counts.convolution)


def _stage_backward(*arguments: Any, out_val: Any) -> int:
    *_, x, weights, _, stage, _, weight_grads = arguments
    kernels = stage[1 : 1 + len(stage) // 2]
    return _stage(x.shape[-4:-1], weights[1], stage[0], kernels, _backward(True, weight_grads))


def _separable_edges(
    x: Tensor,
    weights: Sequence[Tensor],
    plan: Sequence[int],
    mixing: Tensor,
    moments: Sequence[Tensor],
    into: Sequence[Tensor | None],
    images: int = 1,
    *,
    out_val: Any,
) -> int:
    return _edges(x, weights, plan, images, operation_counts.convolution)


def _separable_edges_backward(
    grads: Sequence[Tensor],
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    feedback: Sequence[Tensor],
    plan: Sequence[int],
    *rest: Any,
    out_val: Any,
) -> int:
    weight_grads, images = rest[2], rest[3] if len(rest) > 3 else 1
    down = len(feedback) > 0
    return _edges(saved[0], weights, plan, images, _backward(down, down and weight_grads))


def _factorized_reduce(x: Tensor, weights: Sequence[Tensor], images: int = 1, *, out_val: Any) -> int:
    return _reductions(x, weights, images, operation_counts.convolution)


def _factorized_reduce_backward(
    grads: Sequence[Tensor],
    prologue: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    feedback: Sequence[Tensor],
    weight_grads: bool,
    images: int = 1,
    *,
    out_val: Any,
) -> int:
    return _reductions(x, weights, images, _backward(True, weight_grads))


def _planar(x: Tensor, weights: Sequence[Tensor], count: Count) -> int:
    images, _, height, width = x.shape
    total = 0
    for weight in weights:
        outputs, inputs = weight.shape[0], weight.shape[0] if weight.shape[2] > 1 else weight.shape[1]
        total += count([images, inputs, height, width], list(weight.shape), [images, outputs, height, width])
    return total


def _planar_edges(x: Tensor, weights: Sequence[Tensor], *_: Any, out_val: Any) -> int:
    return _planar(x, weights, operation_counts.convolution)


def _planar_edges_backward(grads: Any, x: Tensor, maps: Any, moments: Any, *rest: Any, out_val: Any) -> int:
    return _planar(x, rest[0], _backward(True, rest[-1]))


_FORMULAS: dict[str, operation_counts.Formula] = {
    "stage_forward": _stage_forward,
    "stage_backward": _stage_backward,
    "separable_edges": _separable_edges,
    "separable_edges_backward": _separable_edges_backward,
    "planar_edges": _planar_edges,
    "planar_edges_backward": _planar_edges_backward,
    "factorized_reduce": _factorized_reduce,
    "factorized_reduce_backward": _factorized_reduce_backward,
}


def declare() -> None:
    """Register the operators of the compiled library, once it is loaded."""
    operators = torch.ops.bionas_fast_native
    operation_counts.declare(lambda: {getattr(operators, name): formula for name, formula in _FORMULAS.items()})
