"""The mixed candidates of all edges from a state of a cell: one op with one backward pass.

The candidates read the same state, so one pass over it serves all of them. Each is followed by batch normalisation, an
affine map per channel that the next kernel applies on load, and whose backward pass is an affine map that the previous
kernel applies on load: neither result is ever written to memory. Only the maps before the last normalisations are
written; the mixed sum reads each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bionas_fast import backends, native, torch_private
from bionas_fast.errors import InputError
from bionas_fast.kernels.records import Moments, SavedEdges, Terms
from bionas_fast.kernels.tables import filled
from bionas_fast.ops.mixed_edges.backends import Backend, find
from bionas_fast.ops.mixed_edges.layout import Layout
from bionas_fast.ops.mixed_edges.plan import Plan, Weights
from bionas_fast.ops.mixed_edges.statistics import Statistics
from bionas_fast.ops.mixed_edges.terms import TermsBackward, term_maps

backends.declare("mixed_edges", native=native.obstacle, triton=backends.triton_obstacle)


class Feedback(Protocol):
    """The feedback of all candidates in one pass."""

    def make(self) -> tuple[Tensor, Tensor | None]:
        """Compute the feedback, flat like the weights, and that of the identities, [edges, C]; called once."""


def mixed_edges(
    x: Tensor,
    mixing: Tensor,
    into: Sequence[Tensor | None],
    weights: Tensor,
    plan: Plan,
    statistics: Statistics,
    feedback: Feedback,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """Compute into[e] + Σ_{maps of e} mixing · BN(map) for each edge e; the identity has no BN.

    Args:
        x: the state, [N, H, W, C].
        mixing: the mixing weights of the separable candidates, then of the terms of ``plan``.
        into: for each edge a tensor [N, H_out, W_out, C] to add to, or None.
        weights: flat, as split by :meth:`Weights.split`.
        statistics: updated in training, used otherwise.
        feedback: computed in the backward pass, and only if an error or a weight gradient needs it.

    Returns:
        One tensor [N, H_out, W_out, C] per edge.

    Raises:
        InputError: a single position in training, whose variance is 0.
    """
    if statistics.training and len(statistics.mean) and statistics.synchroniser is None:
        images, height, width, _ = x.shape
        if images * -(-height // plan.stride) * -(-width // plan.stride) == 1:
            raise InputError(
                "batch normalisation in training needs more than one value per channel, and of one image one pixel is "
                "left: expected a larger batch or larger images"
            )
    precise = x.to(weights.dtype)
    into = [None if tensor is None else tensor.to(precise.dtype) for tensor in into]
    # In evaluation no statistics are computed, so none are synchronised.
    synchroniser = statistics.synchroniser if statistics.training else None
    implementation = find(chosen_backend(x, weights, backend), synchroniser)
    out = _MixedEdges.apply(precise, mixing, weights, plan, statistics, feedback, implementation, *into)
    return out if precise is x else tuple(tensor.to(x.dtype) for tensor in out)


def chosen_backend(x: Tensor, weights: Tensor, backend: str | None) -> str:
    """Choose the backend; sums over whole batches use the precision of the weights, float32 under autocast."""
    chosen = backends.choose("mixed_edges", x.device.type, backend)
    if weights.dtype != torch.float32 or not x.numel():
        return "reference"
    if chosen == "triton" and torch_private.has_dispatch_modes():
        return "reference"  # fake tensors
    return chosen


def _without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """Disable autocast in a method: run it in the dtypes of its tensors."""

    @wraps(method)
    def run(ctx: Any, *args: Any) -> Any:
        device = args[0].device.type
        if not torch.is_autocast_enabled(device):
            return method(ctx, *args)
        with torch.autocast(device, enabled=False):
            return method(ctx, *args)

    return run


class _MixedEdges(torch.autograd.Function):
    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        x: Tensor,
        mixing: Tensor,
        weights: Tensor,
        plan: Plan,
        statistics: Statistics,
        feedback: Feedback,
        backend: Backend,
        *into: Tensor | None,
    ) -> tuple[Tensor, ...]:
        channels = x.shape[-1]
        layout = Layout.of(x, backend.multiple, backend.most_images)
        backend = backend.of_images(layout.images)
        state = layout.pack(x)
        w = Weights.split(weights, plan, channels)
        branches, rows = plan.branches, plan.separable.normalisations
        factors = mixing.to(backend.factors)
        running = None if statistics.training else layout.moments(statistics.mean, statistics.var)
        moved = statistics.running if statistics.training and backend.moves_statistics else None
        found: list[Moments] = []
        out: Sequence[Any] = [None if tensor is None else layout.pack(tensor) for tensor in into]
        z: Tensor | None = None
        separable = of_terms = None
        if branches:
            given = None if running is None else running.rows(slice(rows))
            own = None if moved is None else moved.rows(slice(rows))
            out, z, separable = backend.edges_forward(
                state, w.separable, plan.separable, factors[:branches], given, out, own
            )
            found.append(separable)
        maps: list[Tensor] = []
        if plan.terms.index:
            maps, sums = term_maps(state, w.reductions, plan, backend)
            given = None if running is None else running.rows(slice(rows, None))
            own = None if moved is None else moved.rows(slice(rows, None))
            out, of_terms = backend.normalised_forward(maps, plan.terms, factors[branches:], sums, given, out, own)
            found.append(of_terms)
        if statistics.training and found and moved is None:
            now = Moments(torch.cat([own.mean for own in found]), torch.cat([own.var for own in found]))
            statistics.update(now, out[0].numel() // layout.width)
        if plan.pools:  # recomputed in the backward pass, for 1/100 of its time and 1/30 of the memory
            del maps[plan.reductions > 0]
        none = (None, None)
        ctx.save_for_backward(state, mixing, weights, z, *(separable or none), *(of_terms or none), *maps)
        ctx.static = plan, feedback, statistics.training, backend, layout, [tensor is not None for tensor in into]
        return tuple(layout.unpack(tensor) for tensor in out)

    @staticmethod
    @_without_autocast
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        plan, feedback, training, backend, layout, added = ctx.static
        state, mixing, weights, z, mean, var, term_mean, term_var, *maps = ctx.saved_tensors
        want_x, _, want_weights, *_ = ctx.needs_input_grad
        branches = plan.branches
        grads = tuple(grad.contiguous() for grad in grads)
        # The gradients of ``into`` are passed on without a copy.
        passed = [grad if own else None for grad, own in zip(grads, added, strict=True)]
        grads = tuple(backend.together([layout.pack(grad) for grad in grads]))
        b = identity_feedback = None
        if want_x or want_weights:
            flat, identity_feedback = feedback.make()
            b = Weights.split(flat, plan, layout.channels)
        w = Weights.split(weights, plan, layout.channels)
        factors = mixing.to(backend.factors)
        down: list[Tensor] = []
        weight_grads: list[Tensor] = []
        grad_mixing: list[Tensor] = []
        if branches:
            saved = SavedEdges(state, z, Moments(mean, var), training)
            own = backend.edges_backward(
                grads,
                saved,
                w.separable,
                None if b is None else b.separable,
                plan.separable,
                factors[:branches],
                want_weights,
            )
            grad_mixing.append(own.mixing)
            down.append(own.x)
            weight_grads.append(own.weights)
        if plan.terms.index:
            if plan.pools:
                maps.insert(plan.reductions > 0, backend.pooling_forward(state, plan.stride)[0])
            moments = Moments(term_mean, term_var)
            found = backend.normalised_backward(grads, maps, plan.terms, factors[branches:], moments, training)
            grad_mixing.append(found.factors)
            terms = TermsBackward(plan, backend, state, maps, grads, found)
            if b is not None and plan.reductions:
                error, reduce_grads = terms.reductions(w.reductions, b.reductions, want_weights)
                weight_grads += reduce_grads
                down.append(error)
            if want_x and plan.pools:
                down.append(terms.pools())
        grad_x = None
        if want_x:
            scale = None if identity_feedback is None else layout.rows(identity_feedback)
            grad_x = layout.unpack(_add_up(down, backend, grads if plan.identity else (), scale))
        grad_weights = None
        if want_weights:
            each = [grad.flatten() for grad in weight_grads]
            grad_weights = each[0] if len(each) == 1 else torch.cat([weights.new_empty(0), *each])
        return (grad_x, torch.cat(grad_mixing).to(mixing.dtype), grad_weights, *[None] * 4, *passed)


def _add_up(down: Sequence[Tensor], backend: Backend, grads: Sequence[Tensor], scale: Tensor | None) -> Tensor:
    """Compute Σ down + Σ_e scale[e] · grads[e] in one pass."""
    if len(down) == 1 and not grads:
        return down[0]
    like = (*down, *grads)[0]
    weight = filled(1, (len(down), like.shape[-1]), like.device).to(like.dtype)
    if grads:
        assert scale is not None
        weight = torch.cat([weight, scale.to(like.dtype)])
    terms = Terms(tuple(range(len(weight))), (0,) * len(weight), 1)
    zero = filled(0, (1, like.shape[-1]), like.device).to(like.dtype)
    (total,) = backend.sum_forward([tensor[None] for tensor in (*down, *grads)], terms, weight, zero, [None])
    return total
