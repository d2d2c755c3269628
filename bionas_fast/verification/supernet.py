"""Checks of the kernels of the stacked supernet, against their references in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from torch import Tensor

from bionas_fast.kernels import batch_norm
from bionas_fast.kernels.factorized_reduce import reference as factorized_reduce
from bionas_fast.kernels.mixed_sum import reference as mixed_sum
from bionas_fast.kernels.pooling import reference as pooling
from bionas_fast.kernels.records import (
    Affine,
    Moments,
    Prologue,
    ReductionWeights,
    Running,
    SavedEdges,
    SeparablePlan,
    SeparableWeights,
    Stage,
    StageWeights,
    Sums,
    Terms,
)
from bionas_fast.kernels.separable_stage import reference as separable_stage
from bionas_fast.ops.mixed_edges import autograd  # noqa: F401  (its import declares the op)
from bionas_fast.ops.mixed_edges.backends import Backend, find
from bionas_fast.ops.mixed_edges.plan import POOLS, Plan, Weights
from bionas_fast.ops.mixed_edges.records import Feedbacks, SavedState
from bionas_fast.verification.bounds import as_precise_as, elementwise, rounding
from bionas_fast.verification.check import Check, Draw, Expected, Target, magnitudes, tensors

Shape = tuple[int, int, int, int]  # [N, H, W, C]

#: Odd and small sizes; the compiled kernels need multiples of 16 channels.
ODD: dict[str, tuple[Shape, ...]] = {
    "native": ((1, 1, 1, 16), (2, 7, 5, 16), (3, 6, 4, 32), (2, 1, 9, 48)),
    "triton": ((1, 1, 1, 1), (2, 7, 5, 5), (3, 6, 4, 16), (2, 1, 9, 3), (1, 2, 3, 35), (0, 4, 3, 2)),
}
#: The states of the paper's supernet, and one of photographs.
REAL: tuple[Shape, ...] = ((64, 32, 32, 16), (64, 16, 16, 32), (64, 8, 8, 64), (16, 56, 56, 48))


def checks(target: Target) -> Iterator[Check]:
    """Make the checks of all kernels of the op ``mixed_edges``."""
    backend = find(target.backend)
    shapes = REAL if target.large else ODD[target.backend]
    for shape in shapes:
        yield from _stages(target, backend, shape)
        yield from _sums(target, backend, shape)
        yield from _pools(target, backend, shape)
        if target.dtype == "float32":  # narrower maps are not normalised by kernels
            yield from _reductions(target, backend, shape)
            if _positions(shape) > 1:
                yield from _normalised(target, backend, shape)
    if target.dtype == "float32":
        for shape, stride in product(((2, 7, 5, 16), (3, 4, 6, 32)), (1, 2)):
            yield from _edges(target, backend, shape, stride)
            yield from _candidates(target, backend, shape, stride)


def _positions(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _text(shape: Shape, *more: object) -> str:
    return " ".join(["x".join(map(str, shape)), *map(str, more)])


def _called(function: Callable[..., Any]) -> Callable[..., Sequence[Tensor]]:
    return lambda *arguments: list(tensors(function(*arguments)))


def _weights(draw: Draw, stage: Stage, channels: int) -> StageWeights:
    """Draw weights of a stage."""
    depthwise = draw.normal(stage.taps * channels, scale=0.3)
    return StageWeights(depthwise, draw.normal(len(stage.kernels), channels, channels, scale=channels**-0.5))


def _prologue(draw: Draw, shape: Shape, edges: Sequence[int]) -> Prologue:
    """Draw the gradient of maps of this shape; those of one edge share a tensor."""
    grads = [draw.normal(*shape) for _ in range(max(edges) + 1)]
    rows = [draw.normal(len(edges), shape[-1]) for _ in range(3)]
    return Prologue([grads[e] for e in edges], draw.map(len(edges), *shape), *rows)


def _stages(target: Target, backend: Backend, shape: Shape) -> Iterator[Check]:
    channels = shape[-1]
    for number, (stride, own) in enumerate(((1, False), (2, False), (1, True))):
        stage = Stage((3, 5), (1, 1), 1) if own else Stage((3, 5, 3, 5), (1, 1, 2, 2), stride)
        draw, branches = target.draw(number), len(stage.kernels)
        x = draw.coarse_map(branches, *shape) if own else draw.coarse_map(*shape)
        weights, feedback = _weights(draw, stage, channels), _weights(draw, stage, channels)
        affine = Affine(draw.coarse(branches, channels), draw.coarse(branches, channels)) if own else None
        size = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), channels)
        text = _text(shape, f"stride {stride}", *(["own affine input"] if own else []))
        terms = 25 + channels + _positions(shape)

        def forward(*arguments: Any) -> Any:
            z, sums = backend.stage_forward(*arguments)
            return z, *sums.whole()

        def backward(*arguments: Any) -> Any:
            grads = backend.stage_backward(*arguments)
            if not grads.total.numel():  # of a shared input
                none = grads.x.new_empty(0)
                return grads._replace(total=none, products=none)
            total, products = Sums(grads.total, grads.products).whole()
            return grads._replace(total=total, products=products)

        def of_forward(*arguments: Any, terms: int = terms) -> Expected:
            return elementwise(target, separable_stage.forward, arguments, terms, 3)

        def of_backward(*arguments: Any, terms: int = terms) -> Expected:
            return elementwise(target, separable_stage.backward, arguments, terms, 4)

        given = (x, weights, stage, affine)
        yield Check("stage, forward", text, given, _called(forward), of_forward)
        prologue = _prologue(draw, size, [k % 2 for k in range(branches)])
        back = (prologue, x, weights, feedback, stage, affine, True)
        yield Check("stage, backward", text, back, _called(backward), of_backward)


def _sums(target: Target, backend: Backend, shape: Shape) -> Iterator[Check]:
    draw, channels = target.draw(), shape[-1]
    maps = [draw.map(3, *shape), draw.map(2, *shape)]
    terms = Terms((0, 4, 2, 0, 1, 4), (0, 0, 1, 2, 2, 2), 4)  # a sum without terms, maps in several sums
    into = [None, draw.normal(*shape), None, draw.normal(*shape)]
    weight, offset = draw.normal(6, channels), draw.normal(4, channels)
    grads = [draw.normal(*shape) for _ in range(4)]

    def of_forward(*arguments: Any) -> Expected:
        return elementwise(target, mixed_sum.forward, arguments, 8)

    def of_backward(*arguments: Any) -> Expected:
        return elementwise(target, mixed_sum.backward, arguments, 1 + _positions(shape))

    given = (maps, terms, weight, offset, into)
    yield Check("mixed sum, forward", _text(shape), given, _called(backend.sum_forward), of_forward)
    back = (grads, maps, terms)
    yield Check("mixed sum, backward", _text(shape), back, _called(backend.sum_backward), of_backward)


def _pools(target: Target, backend: Backend, shape: Shape) -> Iterator[Check]:
    for stride in (1, 2):
        draw, text = target.draw(), _text(shape, f"stride {stride}")
        x = draw.coarse_map(*shape)  # with equal maxima
        size = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), shape[3])

        def forward(x: Tensor, stride: int) -> Any:
            z, sums = backend.pooling_forward(x, stride)
            return z, *sums.whole()

        def of_forward(x: Tensor, stride: int) -> Expected:
            return elementwise(target, pooling.forward, (x, stride), 10 + _positions(shape))

        def of_backward(grads: list[Tensor], x: Tensor, stride: int) -> Expected:
            values = [pooling.backward(grads, x, stride)]
            scales = [pooling.backward(magnitudes(grads), x, stride)]
            return Expected(values, scales, [rounding(target, 19)])

        yield Check("pooling, forward", text, (x, stride), _called(forward), of_forward)
        given = ([draw.normal(*size), draw.normal(*size)], x, stride)
        yield Check("pooling, backward", text, given, _called(backend.pooling_backward), of_backward)


def _reductions(target: Target, backend: Backend, shape: Shape) -> Iterator[Check]:
    draw, channels = target.draw(), shape[-1]
    size = (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), channels)

    def weights() -> ReductionWeights:
        halves = (channels - channels // 2, channels // 2)
        return ReductionWeights(*(draw.normal(3, rows, channels, scale=channels**-0.5) for rows in halves))

    def forward(*arguments: Any) -> Any:
        z, sums = backend.reductions_forward(*arguments)
        return z, *sums.whole()

    def of_forward(*arguments: Any) -> Expected:
        return elementwise(target, factorized_reduce.forward, arguments, channels + _positions(shape))

    def of_backward(*arguments: Any) -> Expected:
        terms = 3 * channels + _positions(shape)
        return elementwise(target, factorized_reduce.backward, arguments, terms, 2)

    x, own = draw.coarse(*shape), weights()
    yield Check("factorised reduction, forward", _text(shape), (x, own), _called(forward), of_forward)
    given = (_prologue(draw, size, [0, 1, 0]), x, own, weights(), True)
    backward = _called(backend.reductions_backward)
    yield Check("factorised reduction, backward", _text(shape), given, backward, of_backward)


def _normalised(target: Target, backend: Backend, shape: Shape) -> Iterator[Check]:
    """The sum of normalised maps, in training and with given moments."""
    draw, channels, reference = target.draw(), shape[-1], find("reference")
    # Two groups of positions that differ: what hardly varies cannot be normalised precisely.
    apart = draw.normal(*shape).sign() * 3
    maps = [draw.normal(3, *shape) + apart, draw.normal(2, *shape) + apart]
    terms = Terms((4, 0, 2, 4, 1, 3, 0), (0, 0, 1, 1, 2, 2, 2), 3)
    factors = draw.normal(len(terms.index)).to(backend.factors)
    moments = Moments(draw.normal(5, channels).double(), draw.normal(5, channels).double().square() + 0.5)
    into, grads = [None, draw.normal(*shape), None], [draw.normal(*shape) for _ in range(3)]
    running = Running(draw.normal(5, channels), draw.normal(5, channels).square() + 0.5, 0.25)
    least = 5 + _positions(shape)

    def forward(backend: Backend) -> Callable[..., Any]:
        def run(maps: list[Tensor], factors: Tensor, moments: Moments | None, into: Any, running: Running) -> Any:
            each = [Sums(*(t.double().flatten(1, 3).sum(1) for t in (own, own.double().square()))) for own in maps]
            moved, moves = _copied(running, backend)
            sums = backend.joined_sums(maps, each)
            given = moves if moments is None else None
            out, found = backend.normalised_forward(maps, terms, factors, sums, moments, into, given)
            if moments is None and moves is None:
                batch_norm.update(moved, found, _positions(shape))
            return out, found, moved

        return run

    def backward(backend: Backend, training: bool) -> Callable[..., Any]:
        def run(grads: list[Tensor], maps: list[Tensor], factors: Tensor, moments: Moments) -> Any:
            return backend.normalised_backward(grads, maps, terms, factors, moments, training)

        return run

    for training in (True, False):
        text = _text(shape, "training" if training else "evaluation")
        given = (maps, factors, None if training else moments, into, running)
        yield _composed(target, "normalised sum, forward", text, given, forward, least)
        of_batch = Moments(*forward(reference)(maps, factors, None, into, running)[1]) if training else moments
        back = (grads, maps, factors, of_batch)

        def both(backend: Backend, training: bool = training) -> Callable[..., Any]:
            return backward(backend, training)

        yield _composed(target, "normalised sum, backward", text, back, both, least)


def _copied(running: Running, backend: Backend) -> tuple[Running, Running | None]:
    """Copy running statistics; return the copy, and again if the backend is to move it."""
    moved = Running(running.mean.clone(), running.var.clone(), running.momentum)
    return moved, moved if backend.moves_statistics else None


def _composed(
    target: Target,
    kernel: str,
    text: str,
    given: tuple[Any, ...],
    function: Callable[[Backend], Callable[..., Any]],
    terms: int,
) -> Check:
    """Make a check of a function of a backend with batch normalisation."""

    def expect(*arguments: Any) -> Expected:
        return as_precise_as(target, function(find("reference")), arguments, given, terms)

    return Check(kernel, text, given, _called(function(find(target.backend))), expect)


def _edges(target: Target, backend: Backend, shape: Shape, stride: int) -> Iterator[Check]:
    """All separable candidates of a state, with one and two stages."""
    channels = shape[-1]
    plan = SeparablePlan(Stage((3, 5, 3, 5), (1, 1, 2, 2), stride), (0, 1, 0, 1), 2, 2)
    size = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), channels)
    draw, x, weights = _clear(target, shape, plan)
    feedback = SeparableWeights(_weights(draw, plan.first, channels), _weights(draw, plan.second, channels))
    mixing = draw.normal(4).to(backend.factors)
    into, grads = [draw.normal(*size), None], [draw.normal(*size) for _ in range(2)]
    running = Running(draw.normal(6, channels), draw.normal(6, channels).square() + 0.5, 0.25)
    text, terms = _text(shape, f"stride {stride}"), 50 + 2 * channels + _positions(shape)

    def forward(backend: Backend) -> Callable[..., Any]:
        def run(x: Tensor, weights: SeparableWeights, mixing: Tensor, into: Any) -> Any:
            moved, moves = _copied(running, backend)
            found = backend.edges_forward(x, weights, plan, mixing, None, into, moves)
            if moves is None:
                batch_norm.update(moved, found.moments, found.z[0].numel() // channels)
            return found, moved

        return run

    def backward(backend: Backend) -> Callable[..., Any]:
        def run(
            grads: list[Tensor],
            x: Tensor,
            z: Tensor,
            moments: Moments,
            weights: SeparableWeights,
            feedback: SeparableWeights,
            mixing: Tensor,
        ) -> Any:
            saved = SavedEdges(x, z, moments, True)
            return backend.edges_backward(grads, saved, weights, feedback, plan, mixing, True)

        return run

    given = (x, weights, mixing, into)
    yield _composed(target, "separable edges, forward", text, given, forward, terms)
    (_, z, moments), _ = forward(find("reference"))(*given)
    back = (grads, x, z, moments, weights, feedback, mixing)
    yield _composed(target, "separable edges, backward", text, back, backward, terms)


def _candidates(target: Target, backend: Backend, shape: Shape, stride: int) -> Iterator[Check]:
    """Both passes of all candidates of a state in training; a backend may fuse more in them than in their parts."""
    channels, reduces = shape[-1], stride == 2
    separable = SeparablePlan(Stage((3, 5, 3), (1, 1, 2), stride), (0, 1, 1), 2, 2)
    # Of stride 2, a factorised reduction before the pools; of stride 1, the identity after them.
    terms = Terms((0, 1, 2), (0, 0, 1), 2) if reduces else Terms((0, 2, 1, 2), (0, 0, 1, 1), 2)
    plan = Plan(separable, int(reduces), True, not reduces, terms)
    size = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), channels)
    draw, x, of_stages = _clear(target, shape, separable)
    halves = (channels - channels // 2, channels), (channels // 2, channels)

    def drawn(stages: SeparableWeights | None) -> Weights:
        own = stages or SeparableWeights(
            *(_weights(draw, part, channels) for part in (separable.first, separable.second))
        )
        matrices = (draw.normal(plan.reductions, *half, scale=channels**-0.5) for half in halves)
        return Weights(own, ReductionWeights(*matrices))

    weights, feedback = drawn(of_stages), drawn(None)
    identities = None if reduces else draw.normal(2, channels)
    factors = draw.normal(3 + len(terms.index)).to(backend.factors)
    into, grads = [draw.normal(*size), None], [draw.normal(*size) for _ in range(2)]
    count = separable.normalisations + plan.reductions + POOLS
    running = Running(draw.normal(count, channels), draw.normal(count, channels).square() + 0.5, 0.25)
    text, least = _text(shape, f"stride {stride}"), 50 + 2 * channels + _positions(shape)

    def forward(backend: Backend) -> Callable[..., Any]:
        def run(x: Tensor, weights: Weights, factors: Tensor, into: Any) -> Any:
            moved, moves = _copied(running, backend)
            found = backend.forward(x, weights, plan, factors, None, into, moves)
            assert found.moments is not None
            if moves is None:
                batch_norm.update(moved, found.moments, found.out[0].numel() // channels)
            return found.out, found.moments, moved

        return run

    def backward(backend: Backend) -> Callable[..., Any]:
        def run(
            x: Tensor, weights: Weights, factors: Tensor, grads: list[Tensor], feedback: Weights, identities: Any
        ) -> Any:
            saved = backend.forward(x, weights, plan, factors, None, [None, None], None).saved
            b = Feedbacks(feedback, identities, True, True)
            return backend.backward(grads, SavedState(x, saved, True), weights, b, plan, factors)

        return run

    yield _composed(target, "all candidates, forward", text, (x, weights, factors, into), forward, least)
    back = (x, weights, factors, grads, feedback, identities)
    yield _composed(target, "all candidates, backward", text, back, backward, least)


def _clear(target: Target, shape: Shape, plan: SeparablePlan) -> tuple[Draw, Tensor, SeparableWeights]:
    """Draw a state and weights such that no second ReLU sees a value whose sign is a matter of rounding."""
    channels = shape[-1]
    for seed in range(100):
        draw = target.draw(seed)
        x = draw.coarse(*shape)
        weights = SeparableWeights(_weights(draw, plan.first, channels), _weights(draw, plan.second, channels))
        first = StageWeights(*(own.double() for own in weights.first))
        z, sums = separable_stage.forward(x.double(), first, plan.first)
        mean, var = (own[:, None, None, None] for own in batch_norm.moments(sums, z[0].numel() // channels))
        if not ((z - mean) * batch_norm.rstd(var)).abs().lt(1e-5).any():
            break
    return draw, x, weights
