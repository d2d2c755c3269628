"""The Triton kernels as operators of torch.library, for ``torch.compile`` and fake tensors: a graph holds one each way.

A tracer sees shapes and dtypes only. The operators change nothing in place, so running statistics move outside.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bionas_fast.kernels.records import Moments, Running
from bionas_fast.ops.mixed_edges.backends.reference import Reference
from bionas_fast.ops.mixed_edges.backends.triton import Triton
from bionas_fast.ops.mixed_edges.plan import POOLS, Plan, Weights
from bionas_fast.ops.mixed_edges.records import Feedbacks, Gradients, Mixed, SavedState

_library = torch.library.Library("bionas_fast", "FRAGMENT")
_library.define(
    "mixed_edges(Tensor state, Tensor[] weights, Tensor factors, Tensor[] moments, Tensor?[] into, int[] plan) "
    "-> Tensor[]"
)
_library.define(
    "mixed_edges_backward(Tensor[] grads, Tensor state, Tensor[] saved, bool training, "
    "Tensor[] weights, Tensor[] feedback, Tensor? identities, bool error, bool weight_grads, Tensor factors, "
    "int[] plan) -> Tensor[]"
)
_kernel = "CompositeExplicitAutograd"
_triton = Triton()


class Traced(Triton):
    """The operators; cases that the Triton kernels do not support are traced through the reference."""

    moves_statistics = False

    def forward(
        self,
        state: Tensor,
        weights: Weights,
        plan: Plan,
        factors: Tensor,
        moments: Moments | None,
        into: Sequence[Tensor | None],
        running: Running | None,
    ) -> Mixed:
        if not self.fuses(state, plan):
            return _reference.forward(state, weights, plan, factors, moments, into, running)
        given = [] if moments is None else [*moments]
        out, *made = torch.ops.bionas_fast.mixed_edges.default(
            state, weights.tensors(), factors, given, [*into], plan.numbers
        )
        now = Moments(*made.pop(0).unbind()) if moments is None else None
        between = [*made.pop(0).unbind()] if plan.separable.twice else []
        return Mixed([*out.unbind()], now, [*(now or given), *between, *made])

    def backward(
        self,
        grads: Sequence[Tensor],
        saved: SavedState,
        weights: Weights,
        feedback: Feedbacks | None,
        plan: Plan,
        factors: Tensor,
    ) -> Gradients:
        if not self.fuses(saved.state, plan):
            return _reference.backward(grads, saved, weights, feedback, plan, factors)
        b, identities, *wanted = ([], None, False, False) if feedback is None else feedback
        found = torch.ops.bionas_fast.mixed_edges_backward.default(
            [*grads],
            saved.state,
            [own for own in saved.tensors if own is not None],
            saved.training,
            weights.tensors(),
            b.tensors() if isinstance(b, Weights) else [],
            identities,
            *wanted,
            factors,
            plan.numbers,
        )
        rest = iter(found[1:])
        return Gradients(found[0], *(next(rest) if own else None for own in wanted))

    def stacks(self, state: Tensor, weights: Weights, plan: Plan, moments: Moments) -> list[Tensor]:
        return _reference.stacks(state, weights, plan, moments)


_reference = Reference()


@functools.lru_cache(maxsize=1024)
def _plan(numbers: tuple[int, ...]) -> Plan:
    return Plan.read(numbers)


@torch.library.impl(_library, "mixed_edges", _kernel)
def _forward(
    state: Tensor,
    weights: list[Tensor],
    factors: Tensor,
    moments: list[Tensor],
    into: list[Tensor | None],
    plan: list[int],
) -> list[Tensor]:
    """Return the sums [E, ...], in training the moments [2, ...], the affine maps between stages, and the maps."""
    own, given = _plan(tuple(plan)), Moments(*moments) if moments else None
    found = _triton.fused(state, Weights.of(weights), own, factors, given, into, None)
    kept, twice = [tensor for tensor in found.saved if tensor is not None], own.separable.twice > 0
    between = [torch.stack(kept[:2])] if twice else []
    return [found.out, *([] if moments else [torch.stack([*found.moments])]), *between, *kept[2 * twice :]]


@torch.library.register_fake("bionas_fast::mixed_edges", lib=_library)
def _forward_fake(
    state: Tensor,
    weights: list[Tensor],
    factors: Tensor,
    moments: list[Tensor],
    into: list[Tensor | None],
    plan: list[int],
) -> list[Tensor]:
    own, (images, height, width, channels) = _plan(tuple(plan)), state.shape
    size = (images, -(-height // own.stride), -(-width // own.stride), channels)
    separable = own.separable
    made = [state.new_empty(own.edge_count, *size)]
    if not moments:
        count = separable.normalisations + own.reductions + POOLS * own.pools
        made.append(state.new_empty(2, count, channels, dtype=torch.float64))
    if separable.twice:
        made.append(state.new_empty(2, separable.twice, channels, dtype=torch.float32))
    maps = [count for count in (own.branches, own.reductions) if count]
    return made + [state.new_empty(count, *size) for count in maps]


@torch.library.impl(_library, "mixed_edges_backward", _kernel)
def _backward(
    grads: list[Tensor],
    state: Tensor,
    saved: list[Tensor],
    training: bool,
    weights: list[Tensor],
    feedback: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    """Return the gradient of the factors, and what is requested of the error and the flat weight gradients."""
    *given, factors, plan = rest
    b = Feedbacks(Weights.of(feedback), *given) if feedback else None
    passed = SavedState(state, saved, training)
    found = _triton.backward(grads, passed, Weights.of(weights), b, _plan(tuple(plan)), factors)
    return [own for own in found if own is not None]


@torch.library.register_fake("bionas_fast::mixed_edges_backward", lib=_library)
def _backward_fake(grads: list[Tensor], state: Tensor, *rest: Any) -> list[Tensor]:
    *_, weights, _, _, error, weight_grads, factors, _ = rest
    made = [factors.new_empty(factors.shape)]
    if error:
        made.append(torch.empty_like(state, memory_format=torch.contiguous_format))
    if weight_grads:
        made.append(factors.new_empty(sum(own.numel() for own in weights)))
    return made
