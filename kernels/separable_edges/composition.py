"""All separable candidates of the edges from a state, composed of the stage and the mixed sum.

With the references of both this is the specification; it also runs wherever the two are not fused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..parts import Parts
from ..records import (
    EdgesGradients,
    Moments,
    Prologue,
    Running,
    SavedEdges,
    SeparablePlan,
    SeparableWeights,
    Separated,
    Sums,
)


def forward(
    parts: Parts,
    x: Tensor,
    weights: SeparableWeights,
    plan: SeparablePlan,
    mixing: Tensor,
    moments: Moments | None,
    into: Sequence[Tensor | None],
    running: Running | None = None,
) -> Separated:
    """Compute out[e] = into[e] + Σ_{branches k of e} mixing[k] · BN(z_k).

    Args:
        parts: the implementation of the stages and the sum.
        x: the state, [N, H, W, C].
        mixing: float64 [K].
        moments: the moments of every normalisation; None for those of this batch.
        into: a tensor [N, H_out, W_out, C] or None for each edge.
        running: the running statistics of every normalisation, which move if there are no ``moments``.
    """
    twice = plan.twice
    z, sums = parts.stage_forward(x, weights.first, plan.first)
    last = sums.rows(slice(twice, None))
    found: list[Moments] = []
    if twice:
        given = None if moments is None else moments.rows(slice(twice))
        moved = None if running is None else running.rows(slice(twice))
        affine, between = parts.affine_forward(sums.rows(slice(twice)), given, z[:twice], moved)
        found.append(between)
        z2, sums = parts.stage_forward(z[:twice], weights.second, plan.second, affine)
        z = torch.cat([z2, z[twice:]])
        last = Sums(torch.cat([sums.total, last.total]), torch.cat([sums.squares, last.squares]))
    given = None if moments is None else moments.rows(slice(twice, None))
    moved = None if running is None else running.rows(slice(twice, None))
    out, behind = parts.normalised_forward([z], plan.terms, mixing, last, given, into, moved)
    if moments is None:
        found.append(behind)
        moments = Moments(torch.cat([own.mean for own in found]), torch.cat([own.var for own in found]))
    return Separated(out, z, moments)


def backward(
    parts: Parts,
    grads: Sequence[Tensor],
    saved: SavedEdges,
    weights: SeparableWeights,
    feedback: SeparableWeights | None,
    plan: SeparablePlan,
    mixing: Tensor,
    weight_grads: bool,
) -> EdgesGradients:
    """Compute the gradients; arguments as in :func:`forward`.

    The maps between the two stages are recomputed.

    Args:
        grads: the gradients of the sums.
        feedback: laid out like the weights; None if only the gradient of ``mixing`` is requested.
        weight_grads: whether weight gradients are requested.
    """
    x, z, (mean, var), training = saved
    twice = plan.twice
    moments = Moments(mean, var)
    last = parts.normalised_backward(grads, [z], plan.terms, mixing, moments.rows(slice(twice, None)), training)
    if feedback is None:
        return EdgesGradients(last.factors, x.new_empty(0), x.new_empty(0))
    a, b, d = last.a, last.b, last.d
    incoming = [grads[edge] for edge in plan.edges]
    second = [x.new_empty(0), x.new_empty(0)]
    if twice:
        first = plan.first.first(twice)
        z1, first_sums = parts.stage_forward(x, weights.first.first(first), first)
        between = moments.rows(slice(twice))
        affine, _ = parts.affine_forward(first_sums, between, z1)
        own = parts.stage_backward(
            Prologue(incoming[:twice], z[:twice], a[:twice], b[:twice], d[:twice]),
            z1,
            weights.second,
            feedback.second,
            plan.second,
            affine,
            weight_grads,
        )
        second = [own.depthwise, own.pointwise]
        below_a, below_b, below_d = parts.affine_backward(Sums(own.total, own.products), between, z1, training)
        a, b, d = (torch.cat([one, other[twice:]]) for one, other in ((below_a, a), (below_b, b), (below_d, d)))
        incoming = [*own.x, *incoming[twice:]]
        z = torch.cat([z1, z[twice:]])
    below = parts.stage_backward(
        Prologue(incoming, z, a, b, d), x, weights.first, feedback.first, plan.first, None, weight_grads
    )
    flat = [grad.flatten() for grad in (below.depthwise, below.pointwise, *second)]
    return EdgesGradients(last.factors, below.x, torch.cat(flat))
