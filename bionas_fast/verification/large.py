"""Checks of kernels on CUDA devices with more than 2³¹ elements.

Only the first and the last image hold numbers; a kernel that counts in 32 bits reads or writes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bionas_fast.kernels.feedback import reference as feedback
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.kernels.mixed_sum import reference as mixed_sum
from bionas_fast.kernels.pooling import reference as pooling
from bionas_fast.kernels.records import Stage, StageWeights, Terms
from bionas_fast.kernels.separable_stage import reference as separable_stage
from bionas_fast.ops.feedback import feedback_linear
from bionas_fast.ops.mixed_edges.backends import find
from bionas_fast.verification.bounds import elementwise
from bionas_fast.verification.check import Check, Expected, Target

#: [N, H, W, C] of float16 with a little more than 2³¹ elements, and the memory of each check.
SHAPE = (2049, 128, 128, 64)
MEMORY = 26 * 2**30


def obstacle(target: Target) -> str:
    """Return the reason why there is too little memory; empty if there is enough."""
    with torch.cuda.device(target.device):
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
    return "" if free >= MEMORY else f"needs {MEMORY >> 30} GiB of free memory, there are {free >> 30}"


def checks(target: Target, shape: tuple[int, int, int, int] = SHAPE) -> Iterator[Check]:
    """Make the checks.

    Args:
        shape: of the whole maps; others are for tests.
    """
    backend, draw, channels = find(target.backend), target.draw(), shape[-1]
    text, ends = "x".join(map(str, shape)), draw.coarse(2, *shape[1:])
    stage = Stage((3,), (1,), 1)
    weights = StageWeights(draw.normal(9 * channels, scale=0.3), draw.normal(1, channels, channels, scale=0.1))

    def filled(ends: Tensor) -> Tensor:
        whole = ends.new_zeros(shape)
        whole[0], whole[-1] = ends
        return whole

    def cut(maps: Tensor) -> Tensor:
        return torch.stack([maps[..., 0, :, :, :], maps[..., -1, :, :, :]], dim=-4)

    def bounded(exact: Callable[..., Any], terms: int) -> Callable[..., Expected]:
        return lambda *arguments: elementwise(target, exact, arguments, terms, 3)

    def pools(ends: Tensor) -> list[Tensor]:
        return [cut(backend.pooling_forward(filled(ends), 1)[0])]

    yield Check("pooling, forward", text, (ends,), pools, bounded(lambda x: pooling.forward(x, 1)[0], 10))

    def sums(ends: Tensor, weight: Tensor, offset: Tensor) -> list[Tensor]:
        (out,) = backend.sum_forward([filled(ends)[None]], Terms((0,), (0,), 1), weight, offset, [None])
        return [cut(out)]

    def right_sums(ends: Tensor, weight: Tensor, offset: Tensor) -> list[Tensor]:
        return mixed_sum.forward([ends[None]], Terms((0,), (0,), 1), weight, offset, [None])

    given: tuple[Any, ...] = (ends, draw.normal(1, channels), draw.normal(1, channels))
    yield Check("mixed sum, forward", text, given, sums, bounded(right_sums, 3))

    def stages(ends: Tensor, weights: StageWeights) -> list[Tensor]:
        return [cut(backend.stage_forward(filled(ends), weights, stage)[0])]

    def right_stages(ends: Tensor, weights: StageWeights) -> Tensor:
        return separable_stage.forward(ends, weights, stage)[0]

    yield Check("stage, forward", text, (ends, weights), stages, bounded(right_stages, 9 + channels))

    def errors(ends: Tensor, weight: Tensor) -> list[Tensor]:
        own = Feedback("sign", scale=0.05)
        x = ends.new_zeros(shape).requires_grad_()
        out = feedback_linear(x, weight, None, own, backend=target.backend)
        return [cut(torch.autograd.grad(out, x, filled(ends))[0])]

    def right_errors(ends: Tensor, weight: Tensor) -> Tensor:
        return ends @ feedback.feedback_weight(weight, Feedback("sign", scale=0.05))

    given = (ends, draw.coarse(channels, channels))
    yield Check("feedback layer, sign", text, given, errors, bounded(right_errors, channels))
