"""All candidates of the edges from a state, composed of the separable edges and of normalised sums of the other maps.

With the reference this is the specification; it also runs wherever a backend does not fuse more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bionas_fast.kernels.records import Moments, Running, SavedEdges, Sums, Terms
from bionas_fast.kernels.tables import filled
from bionas_fast.ops.mixed_edges.parts import CandidateParts
from bionas_fast.ops.mixed_edges.plan import Plan, Weights
from bionas_fast.ops.mixed_edges.records import Feedbacks, Gradients, Mixed, SavedState
from bionas_fast.ops.mixed_edges.terms import TermsBackward, term_maps


def forward(
    parts: CandidateParts,
    state: Tensor,
    weights: Weights,
    plan: Plan,
    factors: Tensor,
    moments: Moments | None,
    into: Sequence[Tensor | None],
    running: Running | None,
) -> Mixed:
    """Compute the sum of every edge.

    Args:
        parts: the kernels.
        state: [N, H, W, C].
        factors: the mixing weights of the separable candidates, then of the terms.
        moments: the moments of every normalisation; None for those of this batch.
        into: for each edge a tensor to add to, or None.
        running: the running statistics of every normalisation, which move if there are no ``moments``.
    """
    rows = slice(plan.separable.normalisations), slice(plan.separable.normalisations, None)
    given = [None if moments is None else moments.rows(own) for own in rows]
    moved = [None if running is None else running.rows(own) for own in rows]
    out: Sequence[Tensor | None] = into
    z: Tensor | None = None
    maps: list[Tensor] = []
    none = None, None
    separable: Moments | tuple[None, None] = none
    of_terms: Moments | tuple[None, None] = none
    if plan.branches:
        out, z, separable = parts.edges_forward(
            state, weights.separable, plan.separable, factors[: plan.branches], given[0], out, moved[0]
        )
    if plan.terms.index:
        maps, each = term_maps(state, weights.reductions, plan, parts)
        sums = _joined(parts, maps[: len(each)], each, state)
        out, of_terms = parts.normalised_forward(
            maps, plan.terms, factors[plan.branches :], sums, given[1], out, moved[1]
        )
    now = None
    if moments is None:
        found = [own for own in (separable, of_terms) if isinstance(own, Moments)]
        now = Moments(torch.cat([own.mean for own in found]), torch.cat([own.var for own in found]))
    if plan.pools:  # recomputed in the backward pass, for 1/100 of its time and 1/30 of the memory
        del maps[plan.pools_at]
    return Mixed([own for own in out if own is not None], now, [z, *separable, *of_terms, *maps])


def _joined(parts: CandidateParts, maps: Sequence[Tensor], sums: Sequence[Sums], state: Tensor) -> Sums:
    if len(sums) > 1:
        return parts.joined_sums(maps, sums)
    none = state.new_empty(0, state.shape[-1], dtype=torch.float64)
    return sums[0] if sums else Sums(none, none)


def stacks(parts: CandidateParts, state: Tensor, weights: Weights, plan: Plan, moments: Moments) -> list[Tensor]:
    """Compute the stacks of maps before their last normalisations: of the separable candidates, then of the terms."""
    found: list[Tensor] = []
    if plan.branches:
        factors, nothing = state.new_zeros(plan.branches, dtype=parts.factors), [None] * plan.edge_count
        given = moments.rows(slice(plan.separable.normalisations))
        found.append(parts.edges_forward(state, weights.separable, plan.separable, factors, given, nothing).z)
    if plan.terms.index:
        found += term_maps(state, weights.reductions, plan, parts)[0]
    return found


def backward(
    parts: CandidateParts,
    grads: Sequence[Tensor],
    saved: SavedState,
    weights: Weights,
    feedback: Feedbacks | None,
    plan: Plan,
    factors: Tensor,
) -> Gradients:
    """Compute the gradients; arguments as in :func:`forward`.

    Args:
        grads: the gradients of the sums.
        feedback: None if only the gradient of ``factors`` is requested.
    """
    state, (z, mean, var, term_mean, term_var, *kept), training = saved
    maps = list(kept)  # to the compiler of torch 2.11 a tuple
    branches = plan.branches
    want_weights = feedback is not None and feedback.weight_grads
    down: list[Tensor] = []
    weight_grads: list[Tensor] = []
    grad_factors: list[Tensor] = []
    if branches:
        assert z is not None and mean is not None and var is not None
        own = parts.edges_backward(
            grads,
            SavedEdges(state, z, Moments(mean, var), training),
            weights.separable,
            None if feedback is None else feedback.weights.separable,
            plan.separable,
            factors[:branches],
            want_weights,
        )
        grad_factors.append(own.mixing)
        down.append(own.x)
        weight_grads.append(own.weights)
    if plan.terms.index:
        assert term_mean is not None and term_var is not None
        if plan.pools:
            maps.insert(plan.pools_at, parts.pooling_forward(state, plan.stride)[0])
        known = [own for own in maps if own is not None]
        given = Moments(term_mean, term_var)
        found = parts.normalised_backward(grads, known, plan.terms, factors[branches:], given, training)
        grad_factors.append(found.factors)
        terms = TermsBackward(plan, parts, state, known, grads, found)
        if feedback is not None and plan.reductions:
            error, reduce_grads = terms.reductions(weights.reductions, feedback.weights.reductions, want_weights)
            weight_grads += [*reduce_grads]
            down.append(error)
        if feedback is not None and feedback.error and plan.pools:
            down.append(terms.pools())
    grad_x = grad_weights = None
    if feedback is not None and feedback.error:
        grad_x = _add_up(parts, down, grads if plan.identity else (), feedback.identities)
    if want_weights:
        each = [grad.flatten() for grad in weight_grads]
        grad_weights = each[0] if len(each) == 1 else torch.cat([state.new_empty(0), *each])
    return Gradients(torch.cat(grad_factors), grad_x, grad_weights)


def _add_up(parts: CandidateParts, down: Sequence[Tensor], grads: Sequence[Tensor], scale: Tensor | None) -> Tensor:
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
    (total,) = parts.sum_forward([tensor[None] for tensor in (*down, *grads)], terms, weight, zero, [None])
    return total
