"""The operators of the compiled kernels as ``torch.compile`` and ``FakeTensorMode`` see them: shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)

_fakes: list[Callable] = []


def fake(function: Function) -> Function:
    """Make ``function`` the fake of the operator of its name."""
    _fakes.append(function)
    return function


def register() -> None:
    """Register the fakes of all operators that the library has: one made from some of the kernels has some of them."""
    for function in _fakes:
        if hasattr(torch.ops.bionas_fast_native, function.__name__):
            torch.library.register_fake(f"bionas_fast_native::{function.__name__}")(function)


@fake
def feedback_weight(
    weight: Tensor, mode: str, stored: Tensor | None, stream: Tensor | None, bound: float, scale: float
) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


@fake
def uniform(shape: list[int], stream: Tensor) -> Tensor:
    return stream.new_empty(shape, dtype=torch.float32)


@fake
def stage_forward(x, depthwise, pointwise, kernels, dilations, stride, scale, shift):
    n, h, w, c = x.shape[-4:]
    sums = (x.new_empty(len(kernels), c, dtype=torch.float64) for _ in range(2))
    return x.new_empty(len(kernels), n, -(-h // stride), -(-w // stride), c), *sums


@fake
def stage_backward(
    grads, index, z, a, b, d, x, depthwise, pointwise, b_depthwise, b_pointwise, kernels, dilations, stride, scale,
    shift, weights,
):  # fmt: skip
    rows = len(kernels) if x.dim() == 5 else 0
    sums = (x.new_empty(rows, x.shape[-1], dtype=torch.float64) for _ in range(2))
    square = pointwise.shape if weights else (0, *pointwise.shape[1:])
    grads = x.new_empty(depthwise.shape if weights else (0,)), x.new_empty(square)
    return x.new_empty(x.shape), *sums, *grads


@fake
def separable_edges(x, weights, kernels, dilations, stride, edges, count, mixing, mean, var, into):
    n, h, w, c = x.shape
    size = (n, -(-h // stride), -(-w // stride), c)
    rows = len(kernels) + len(weights[3])
    moments = (x.new_empty(rows, c, dtype=torch.float64) for _ in range(2))
    return [x.new_empty(size) for _ in range(count)], x.new_empty(len(kernels), *size), *moments


@fake
def separable_edges_backward(
    grads, z, mean, var, training, x, weights, feedback, kernels, dilations, stride, edges, mixing, weights_wanted
):  # fmt: skip
    down = len(feedback) > 0
    count = sum(tensor.numel() for tensor in weights) if down and weights_wanted else 0
    return torch.empty_like(mixing), x.new_empty(x.shape if down else (0,)), x.new_empty(count)


@fake
def feedback_segments(
    weight: Tensor, stored: Tensor | None, stream: Tensor | None, segments: Tensor, magnitudes: Tensor
) -> Tensor:
    return torch.empty_like(weight)


@fake
def mixed_sum(maps, index, edges, weight, offset, into):
    return [maps[0].new_empty(maps[0].shape[1:]) for _ in range(offset.shape[0])]


@fake
def mixed_sum_backward(maps, index, edges, grads):
    c = maps[0].shape[-1]
    return tuple(maps[0].new_empty(count, c, dtype=torch.float64) for count in (len(grads), len(index)))


@fake
def normalised_sum(maps, index, edges, count, factors, total, squares, mean, var, into):
    out = [maps[0].new_empty(maps[0].shape[1:]) for _ in range(count)]
    return out, torch.empty_like(total), torch.empty_like(squares)


@fake
def normalised_sum_backward(maps, index, edges, factors, mean, var, training, grads):
    affine = (maps[0].new_empty(rows, maps[0].shape[-1]) for rows in (len(index), len(mean), len(mean)))
    return torch.empty_like(factors), *affine


@fake
def pools(x, stride):
    n, h, w, c = x.shape
    sums = (x.new_empty(2, c, dtype=torch.float64) for _ in range(2))
    return x.new_empty(2, n, -(-h // stride), -(-w // stride), c), *sums


@fake
def pools_backward(grads, x, stride):
    return x.new_empty(x.shape)


@fake
def factorized_reduce(x, first, second):
    n, h, w, c = x.shape
    sums = (x.new_empty(len(first), c, dtype=torch.float64) for _ in range(2))
    return x.new_empty(len(first), n, -(-h // 2), -(-w // 2), c), *sums


@fake
def factorized_reduce_backward(
    grads, edges, z, a, b, d, x, first, second, first_feedback, second_feedback, weights
):  # fmt: skip
    shapes = (tensor.shape if weights else (0,) for tensor in (first, second))
    return x.new_empty(x.shape), *(x.new_empty(shape) for shape in shapes)


@fake
def hebbian_activity(
    u: Tensor, external: Tensor | None, norm: Tensor | None, activity: str, decay: str, temperature: float, groups: int
) -> tuple[Tensor, Tensor]:
    made = activity != "linear" or norm is not None
    return u.new_empty(u.shape if made else (0,)), u.new_empty(u.shape[1] * (decay != "none"), dtype=torch.float64)


@fake
def weight_gradient(gradient: Tensor, x: Tensor, padding: list[int]) -> Tensor:
    return x.new_empty(gradient.shape[1], x.shape[1], 3, 3)


@fake
def hebbian_move(
    weight: Tensor, delta: Tensor, total: Tensor, rate: Tensor, positions: float, normalisation: str, groups: int
) -> None:
    return None
