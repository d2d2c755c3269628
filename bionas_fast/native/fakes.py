"""Fakes of the compiled operators, for ``torch.compile`` and ``FakeTensorMode``: shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)

_fakes: list[Callable] = []


def fake(function: Function) -> Function:
    """Declare ``function`` as the fake of the operator of the same name. Use as a decorator."""
    _fakes.append(function)
    return function


def register() -> None:
    """Register the fakes of all operators in the library; a partial library has only some of them."""
    for function in _fakes:
        if hasattr(torch.ops.bionas_fast_native, function.__name__):
            torch.library.register_fake(f"bionas_fast_native::{function.__name__}")(function)


def _expect(condition: bool, message: str) -> None:
    """Raise what the compiled operators raise if an argument does not fit."""
    if not condition:
        raise RuntimeError(message)


def _strided(shape: Sequence[int], stride: int) -> tuple[int, int, int, int]:
    """Return the output shape [N, ⌈H/stride⌉, ⌈W/stride⌉, C] for an input [N, H, W, C]."""
    _expect(stride in (1, 2), f"stride: expected 1 to 2, got {stride}")
    _expect(len(shape) == 4, f"x: expected [N, H, W, C], got {list(shape)}")
    images, height, width, channels = shape
    return images, -(-height // stride), -(-width // stride), channels


def _sums(like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the fakes of two sums over positions, float64 [rows, C]."""
    shape = rows, like.shape[-1]
    return like.new_empty(shape, dtype=torch.float64), like.new_empty(shape, dtype=torch.float64)


def _floats(like: Tensor, *shape: int) -> Tensor:
    """Return the fake of a result that is float32 whatever the dtype of maps."""
    return like.new_empty(shape, dtype=torch.float32)


@fake
def feedback_weight(
    weight: Tensor, mode: str, stored: Tensor | None, stream: Tensor | None, bound: float, scale: float
) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


@fake
def uniform(shape: list[int], stream: Tensor) -> Tensor:
    return stream.new_empty(shape, dtype=torch.float32)


@fake
def stage_forward(
    x: Tensor, weights: list[Tensor], stage: list[int], affine: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    branches = len(stage) // 2
    z = x.new_empty(branches, *_strided(x.shape[-4:], stage[0]))
    return z, *_sums(x, branches)


@fake
def stage_backward(
    grads: list[Tensor],
    prologue: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    feedback: list[Tensor],
    stage: list[int],
    affine: list[Tensor],
    weight_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    depthwise, pointwise = weights
    rows = len(stage) // 2 if x.dim() == 5 else 0
    square = pointwise.shape if weight_grads else (0, *pointwise.shape[1:])
    made = _floats(x, *(depthwise.shape if weight_grads else (0,))), _floats(x, *square)
    return _floats(x, *x.shape), *_sums(x, rows), *made


@fake
def separable_edges(
    x: Tensor,
    weights: list[Tensor],
    plan: list[int],
    mixing: Tensor,
    moments: list[Tensor],
    into: list[Tensor],
    images: int = 1,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    edges, twice = plan[:2]
    branches = len(plan) // 3 - 1
    size = _strided(x.shape, plan[2 + branches])
    _expect(len(into) == edges, "into: expected one for each edge")
    out = [_floats(x, *size) for _ in into]
    return out, x.new_empty(branches, *size), *_sums(x, twice + branches)


@fake
def separable_edges_backward(
    grads: list[Tensor],
    saved: list[Tensor],
    weights: list[Tensor],
    feedback: list[Tensor],
    plan: list[int],
    mixing: Tensor,
    training: bool,
    weight_grads: bool,
    images: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    x, down = saved[0], len(feedback) > 0
    count = sum(tensor.numel() for tensor in weights) if down and weight_grads else 0
    return torch.empty_like(mixing), _floats(x, *(x.shape if down else (0,))), _floats(x, count)


@fake
def feedback_segments(
    weight: Tensor, stored: Tensor | None, stream: Tensor | None, segments: Tensor, magnitudes: Tensor
) -> Tensor:
    return torch.empty_like(weight)


@fake
def mixed_sum(maps: list[Tensor], terms: list[int], weight: Tensor, offset: Tensor, into: list[Tensor]) -> list[Tensor]:
    _expect(len(into) == terms[0], "into: expected one for each sum")
    return [_floats(maps[0], *maps[0].shape[1:]) for _ in into]


@fake
def mixed_sum_backward(grads: list[Tensor], maps: list[Tensor], terms: list[int]) -> tuple[Tensor, Tensor]:
    return _sums(maps[0], terms[0])[0], _sums(maps[0], len(terms) // 2)[0]


@fake
def normalised_sum(
    maps: list[Tensor],
    terms: list[int],
    factors: Tensor,
    sums: list[Tensor],
    moments: list[Tensor],
    into: list[Tensor],
    images: int = 1,
) -> tuple[list[Tensor], Tensor, Tensor]:
    _expect(len(into) == terms[0], "into: expected one for each sum")
    out = [_floats(maps[0], *maps[0].shape[1:]) for _ in into]
    return out, torch.empty_like(sums[0]), torch.empty_like(sums[1])


@fake
def normalised_sum_backward(
    grads: list[Tensor],
    maps: list[Tensor],
    terms: list[int],
    factors: Tensor,
    moments: list[Tensor],
    training: bool,
    images: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels, normalised = maps[0].shape[-1], len(moments[0])
    a, b, d = (_floats(maps[0], rows, channels) for rows in (len(terms) // 2, normalised, normalised))
    return torch.empty_like(factors), a, b, d


@fake
def pooling(x: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(2, *_strided(x.shape, stride)), *_sums(x, 2)


@fake
def pooling_backward(grads: list[Tensor], x: Tensor, stride: int) -> Tensor:
    return _floats(x, *x.shape)


@fake
def factorized_reduce(x: Tensor, weights: list[Tensor], images: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    count = len(weights[0])
    return x.new_empty(count, *_strided(x.shape, 2)), *_sums(x, count)


@fake
def factorized_reduce_backward(
    grads: list[Tensor],
    prologue: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    feedback: list[Tensor],
    weight_grads: bool,
    images: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    first, second = (_floats(x, *(tensor.shape if weight_grads else (0,))) for tensor in weights)
    return _floats(x, *x.shape), first, second


@fake
def feedback_weights(
    weights: list[Tensor],
    modes: list[str],
    stored: list[Tensor | None],
    streams: list[Tensor | None],
    bounds: list[float],
    scales: list[float],
) -> list[Tensor]:
    return [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights]


@fake
def planar_edges(
    x: Tensor,
    weights: list[Tensor],
    affine: list[Tensor],
    running: list[Tensor],
    plan: list[int],
    eps: list[float],
    momentum: list[float],
    into: list[Tensor | None],
    keep: Tensor,
    training: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    images, _, height, width = x.shape
    stages, channels = len(eps), len(affine[0])
    shape = images, channels, height, width
    moments = [x.new_empty(stages, channels, dtype=torch.float64) for _ in range(2)]
    return [x.new_empty(shape) for _ in into], [x.new_empty(shape) for _ in range(stages)], moments[0], moments[1]


@fake
def planar_edges_backward(
    grads: list[Tensor],
    x: Tensor,
    maps: list[Tensor],
    moments: list[Tensor],
    weights: list[Tensor],
    feedback: list[Tensor],
    affine: list[Tensor],
    plan: list[int],
    eps: list[float],
    keep: Tensor,
    training: bool,
    weight_grads: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    of_weights = [weight.new_empty(weight.shape) for weight in weights] if weight_grads else []
    return x.new_empty(x.shape), of_weights, [tensor.new_empty(tensor.shape) for tensor in affine]


@fake
def planar_pool(x: Tensor, stride: int) -> Tensor:
    images, channels, height, width = x.shape
    _expect(stride in (1, 2), f"stride: expected 1 to 2, got {stride}")
    return x.new_empty(images, channels, -(-height // stride), -(-width // stride))


@fake
def planar_pool_backward(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    return x.new_empty(x.shape)


@fake
def hebbian_activity(
    u: Tensor, external: Tensor | None, norm: Tensor | None, activity: str, decay: str, temperature: float, groups: int
) -> tuple[Tensor, Tensor]:
    made = activity != "linear" or norm is not None
    channels = 0 if decay == "none" else u.shape[1]
    return u.new_empty(u.shape if made else (0,)), u.new_empty(channels, dtype=torch.float64)


@fake
def weight_gradient(gradient: Tensor, x: Tensor, padding: list[int]) -> Tensor:
    return x.new_empty(gradient.shape[1], x.shape[1], 3, 3)


@fake
def hebbian_move(
    weight: Tensor, delta: Tensor, total: Tensor, rate: Tensor, positions: float, normalisation: str, groups: int
) -> None:
    return None


@fake
def augment(images: Tensor, index: Tensor, place: Tensor, cutout: int, values: Tensor) -> Tensor:
    return values.new_empty(len(index), *images.shape[1:])
