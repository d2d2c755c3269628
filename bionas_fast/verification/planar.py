"""Checks of the kernels of discrete cells, which run on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.ops.feedback import feedback_conv
from bionas_fast.ops.planar_edges import PlanarStage, planar_edges, planar_pool
from bionas_fast.verification.bounds import as_precise_as
from bionas_fast.verification.check import Check, Draw, Expected, Target

EPSILON, MOMENTUM = 1e-5, 0.1
FEEDBACK = Feedback("sign", scale=0.2)


class Cell(NamedTuple):
    """The edges from one state.

    Attributes:
        input: [N, C, H, W] of the state.
        outputs: the number of channels of the edges.
        edges: (kernel, dilation) of the stages of each edge.
    """

    input: tuple[int, int, int, int]
    outputs: int
    edges: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def text(self) -> str:
        """Shape and stages in words."""
        stages = " + ".join(",".join(f"{k}x{k}/{d}" if k else "1x1" for k, d in edge) for edge in self.edges)
        return f"{'x'.join(map(str, self.input))} {stages}"


CELLS = (
    Cell((3, 5, 7, 9), 5, (((3, 1), (3, 1)), ((5, 2),))),
    Cell((2, 18, 16, 16), 18, (((5, 1), (5, 1)),)),
    Cell((2, 25, 9, 9), 6, (((0, 1),),)),
    Cell((3, 4, 1, 13), 4, (((3, 3),),)),
    Cell((2, 19, 8, 10), 19, (((5, 1),), ((3, 1),))),
)


class _Parameters(NamedTuple):
    """All parameters of the edges, each a list over stages, in order."""

    weights: list[Tensor]
    affine: list[Tensor]
    running: list[Tensor]


def checks(target: Target) -> Iterator[Check]:
    """Make the checks of the edges, in training and evaluation, and of the pool."""
    for cell in CELLS:
        # Of maps that are rounded between two stages, the sign at the second ReLU may be another.
        if target.dtype == "float32" or all(len(edge) == 1 for edge in cell.edges):
            for training in (True, False):
                yield _edges(target, cell, training)
    for stride in (1, 2):
        draw = target.draw()
        x = draw.coarse_map(2, 5, 7, 9)
        given = (x, draw.map(2, 5, -(-7 // stride), -(-9 // stride)), stride)

        def run(x: Tensor, grad: Tensor, stride: int) -> list[Tensor]:
            return _differentiated(planar_pool(leaf := x.detach().requires_grad_(), stride), leaf, grad)

        def plain(x: Tensor, grad: Tensor, stride: int) -> list[Tensor]:
            return _differentiated(F.max_pool2d(leaf := x.detach().requires_grad_(), 3, stride, 1), leaf, grad)

        def expect(*arguments: Any, given: tuple[Any, ...] = given) -> Expected:
            return as_precise_as(target, plain, arguments, given, 9)

        yield Check("planar pool", f"2x5x7x9 stride {stride}", given, run, expect)


def _differentiated(out: Tensor, leaf: Tensor, grad: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, leaf, grad)]


def _parameters(draw: Draw, cell: Cell) -> _Parameters:
    found = _Parameters([], [], [])
    for stages in cell.edges:
        width = cell.input[1]
        for kernel, _ in stages:
            if kernel:
                found.weights.append(draw.normal(width, 1, kernel, kernel, scale=1 / kernel))
            found.weights.append(draw.normal(cell.outputs, width, 1, 1, scale=width**-0.5))
            found.affine.extend((draw.normal(cell.outputs), draw.normal(cell.outputs)))
            found.running.extend((draw.normal(cell.outputs), draw.normal(cell.outputs).square() + 0.5))
            width = cell.outputs
    return found


def _edges(target: Target, cell: Cell, training: bool) -> Check:
    images, _, height, width = cell.input
    size = (images, cell.outputs, height, width)
    for seed in range(100):
        draw = target.draw(seed)
        x, parameters = draw.coarse_map(*cell.input), _parameters(draw, cell)
        seen: list[Tensor] = []
        copies = _Parameters(*([own.double() for own in column] for column in parameters))
        _plain(cell, x.double(), copies, training, seen)
        if not any(own.abs().lt(1e-5).any() for own in seen):  # the sign at a ReLU is no matter of rounding
            break
    into = [draw.map(*size) if edge % 2 == 0 else None for edge in range(len(cell.edges))]
    keep = draw.normal(len(cell.edges), images)
    grads = [draw.map(*size) for _ in cell.edges]

    def expect(*arguments: Any) -> Expected:
        terms = 25 + cell.input[1] + images * height * width
        return as_precise_as(target, lambda *own: _passes(cell, training, False, *own), arguments, given, terms)

    def run(*arguments: Any) -> list[Tensor]:
        return _passes(cell, training, True, *arguments)

    given = (x, parameters, into, keep, grads)
    return Check("planar edges", f"{cell.text} {'training' if training else 'evaluation'}", given, run, expect)


def _passes(
    cell: Cell,
    training: bool,
    kernels: bool,
    x: Tensor,
    parameters: _Parameters,
    into: Sequence[Tensor | None],
    keep: Tensor,
    grads: Sequence[Tensor],
) -> list[Tensor]:
    """Run both passes, by the kernels or in plain PyTorch; return outputs, running statistics and gradients."""
    x = x.detach().requires_grad_()
    weights, affine = ([own.detach().requires_grad_() for own in column] for column in parameters[:2])
    own = _Parameters(weights, affine, [value.clone() for value in parameters.running])
    if kernels:
        out = planar_edges(x, list(_stages(cell, own)), into, keep, training)
    else:
        # In the dtype of the maps, but for the normalisations.
        plain = _plain(cell, x, own._replace(weights=[weight.to(x.dtype) for weight in own.weights]), training, [])
        scaled = [edge * factor[:, None, None, None].to(edge.dtype) for edge, factor in zip(plain, keep, strict=True)]
        out = [edge if base is None else edge + base for edge, base in zip(scaled, into, strict=True)]
    found = torch.autograd.grad(out, [x, *weights, *affine], grads)
    return [*(edge.detach() for edge in out), *own.running, *found]


def _stages(cell: Cell, own: _Parameters) -> Iterator[list[PlanarStage]]:
    weights, affine, running = map(iter, own)
    count = torch.zeros((), dtype=torch.int64)
    for stages in cell.edges:
        edge = []
        for kernel, dilation in stages:
            each = tuple(next(weights) for _ in range(2 if kernel else 1))
            statistics = (next(running), next(running), count.clone())
            pair = (next(affine), next(affine))
            feedback = (FEEDBACK,) * len(each)
            edge.append(PlanarStage(kernel, dilation, each, feedback, pair, statistics, EPSILON, MOMENTUM))
        yield edge


def _plain(cell: Cell, x: Tensor, own: _Parameters, training: bool, seen: list[Tensor]) -> list[Tensor]:
    """Compute the edges in plain PyTorch, and list what the ReLUs of second stages see."""
    weights, affine, running = map(iter, own)
    out = []
    for stages in cell.edges:
        value = x
        for number, (kernel, dilation) in enumerate(stages):
            if number:
                seen.append(value.detach())
            value = F.relu(value)
            if kernel:
                padding, groups = dilation * (kernel // 2), value.shape[1]
                value = feedback_conv(
                    value, next(weights), None, FEEDBACK,
                    backend="reference", padding=padding, dilation=dilation, groups=groups,
                )  # fmt: skip
            value = feedback_conv(value, next(weights), None, FEEDBACK, backend="reference")
            statistics = next(running), next(running)
            value = F.batch_norm(value, *statistics, next(affine), next(affine), training, MOMENTUM, EPSILON)
        out.append(value)
    return out
