"""All separable candidates of the edges from a state, composed of the stage and the mixed sum.

With the references of both this is the specification; it also runs wherever the two are not fused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import batch_norm
from ..parts import Parts
from ..records import (
    Affine,
    EdgesGradients,
    Moments,
    Prologue,
    SavedEdges,
    SeparablePlan,
    SeparableWeights,
    Separated,
    Sums,
    Terms,
)
from ..tables import one_hot, table


def forward(
    parts: Parts,
    x: Tensor,
    weights: SeparableWeights,
    plan: SeparablePlan,
    mixing: Tensor,
    moments: Moments | None,
    into: Sequence[Tensor | None],
) -> Separated:
    """Compute out[e] = into[e] + Σ_{branches k of e} mixing[k] · BN(z_k).

    Args:
        parts: the implementation of the stages and the sum.
        x: the state, [N, H, W, C].
        mixing: float64 [K].
        moments: the moments of every normalisation; None for those of this batch.
        into: a tensor [N, H_out, W_out, C] or None for each edge.
    """
    twice = plan.twice
    z, sums = parts.stage_forward(x, weights.first, plan.first)
    positions = z[0].numel() // z.shape[-1]
    last = sums.rows(slice(twice, None))
    between: list[Moments] = []
    if twice:
        if moments is None:
            between.append(batch_norm.moments(sums.rows(slice(twice)), positions, parts.synchroniser))
        else:
            between.append(moments.rows(slice(twice)))
        z2, sums = parts.stage_forward(z[:twice], weights.second, plan.second, _normalisation(between[0], z.dtype))
        z = torch.cat([z2, z[twice:]])
        last = Sums(torch.cat([sums.total, last.total]), torch.cat([sums.squares, last.squares]))
    if moments is None:
        behind = [*between, batch_norm.moments(last, positions, parts.synchroniser)]
        moments = Moments(torch.cat([own.mean for own in behind]), torch.cat([own.var for own in behind]))
    scale = mixing[:, None] * batch_norm.rstd(moments.var[twice:])
    offset = one_hot(plan.edges, plan.edge_count, x.device) @ (-scale * moments.mean[twice:])
    out = parts.sum_forward([z], _terms(plan), scale.to(x.dtype), offset.to(x.dtype), into)
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
    positions = z[0].numel() // z.shape[-1]
    rstd = batch_norm.rstd(var)
    grad_sum, products = parts.sum_backward(grads, [z], _terms(plan))
    grad_sum = grad_sum[table(plan.edges, x.device)]
    normalised = rstd[twice:] * (products - mean[twice:] * grad_sum)
    grad_mixing = normalised.sum(dim=1)
    if feedback is None:
        return EdgesGradients(grad_mixing, x.new_empty(0), x.new_empty(0))
    factor = mixing[:, None]
    b, d = batch_norm.backward(
        mean[twice:], rstd[twice:], factor * grad_sum, factor * normalised, positions, training, parts.synchroniser
    )
    a, b, d = (value.to(x.dtype) for value in (factor * rstd[twice:], b, d))
    incoming = [grads[edge] for edge in plan.edges]
    second = [x.new_empty(0), x.new_empty(0)]
    if twice:
        first = plan.first.first(twice)
        z1, _ = parts.stage_forward(x, weights.first.first(first), first)
        m, r = mean[:twice], rstd[:twice]
        own = parts.stage_backward(
            Prologue(incoming[:twice], z[:twice], a[:twice], b[:twice], d[:twice]),
            z1,
            weights.second,
            feedback.second,
            plan.second,
            Affine(r.to(x.dtype), (-m * r).to(x.dtype)),
            weight_grads,
        )
        second = [own.depthwise, own.pointwise]
        b1, d1 = batch_norm.backward(m, r, own.total, own.products, positions, training, parts.synchroniser)
        a, b, d = (
            torch.cat([between.to(x.dtype), last[twice:]]) for between, last in ((r, a), (b1, b), (d1, d))
        )  # fmt: skip
        incoming = [*own.x, *incoming[twice:]]
        z = torch.cat([z1, z[twice:]])
    below = parts.stage_backward(
        Prologue(incoming, z, a, b, d), x, weights.first, feedback.first, plan.first, None, weight_grads
    )
    flat = [grad.flatten() for grad in (below.depthwise, below.pointwise, *second)]
    return EdgesGradients(grad_mixing, below.x, torch.cat(flat))


def _terms(plan: SeparablePlan) -> Terms:
    """Describe the sum of the branches of each edge."""
    return Terms(tuple(range(len(plan.edges))), plan.edges, plan.edge_count)


def _normalisation(moments: Moments, dtype: torch.dtype) -> Affine:
    """Express batch normalisation as an affine map."""
    rstd = batch_norm.rstd(moments.var)
    return Affine(rstd.to(dtype), (-moments.mean * rstd).to(dtype))
