"""A mixed sum of batch-normalised maps, composed of the plain mixed sum.

With the reference of the sum this is the specification; it also runs wherever the two are not fused. The first M maps
are normalised, the following ones are not.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from .. import batch_norm
from ..batch_norm import Synchroniser
from ..maps import precise
from ..parts import Parts
from ..records import Affine, Moments, Running, Sums, TermGradients, Terms
from ..tables import one_hot, table


def forward(
    parts: Parts,
    maps: Sequence[Tensor],
    terms: Terms,
    factors: Tensor,
    sums: Sums,
    moments: Moments | None,
    into: Sequence[Tensor | None],
    running: Running | None = None,
) -> tuple[list[Tensor], Moments]:
    """Compute out[e] = into[e] + Σ_{terms t of e} factors[t] · BN(map of t).

    Args:
        parts: the implementation of the plain sum.
        maps: stacks [K_i, N, H, W, C], as in the plain sum.
        factors: float64 [T].
        sums: the sums of the normalised maps.
        moments: the moments of the normalised maps; None for those of this batch.
        into: a tensor or None for each edge.
        running: the running statistics of the normalised maps, which move if there are no ``moments``.

    Returns:
        One tensor per edge; the moments of this pass.
    """
    like, dtype = maps[0], precise(maps[0].dtype)
    if moments is None:
        positions = like[0].numel() // like.shape[-1]
        moments = batch_norm.moments(sums, positions, parts.synchroniser)
        batch_norm.update(running, moments, positions, parts.synchroniser)
    means, rstds = _for_all(moments, maps)
    index = table(terms.index, like.device)
    weight = factors[:, None] * rstds[index]
    offset = one_hot(terms.edges, terms.edge_count, like.device) @ (-weight * means[index])
    return parts.sum_forward(maps, terms, weight.to(dtype), offset.to(dtype), into), moments


def backward(
    parts: Parts,
    grads: Sequence[Tensor],
    maps: Sequence[Tensor],
    terms: Terms,
    factors: Tensor,
    moments: Moments,
    training: bool,
) -> TermGradients:
    """Compute the gradients; arguments as in :func:`forward`, and its results.

    Args:
        grads: the gradients of the sums.
        training: whether the moments were those of the batch.
    """
    like, normalised_maps, dtype = maps[0], len(moments.mean), precise(maps[0].dtype)
    means, rstds = _for_all(moments, maps)
    index, edges = table(terms.index, like.device), table(terms.edges, like.device)
    grad_sum, products = parts.sum_backward(grads, maps, terms)
    grad_sum = grad_sum[edges]
    normalised = rstds[index] * (products - means[index] * grad_sum)  # Σ grad · ẑ of every term

    def by_map(value: Tensor) -> Tensor:
        return one_hot(terms.index, len(rstds), like.device)[:normalised_maps] @ (factors[:, None] * value)

    b, d = batch_norm.backward(
        moments.mean,
        rstds[:normalised_maps],
        by_map(grad_sum),
        by_map(normalised),
        grads[0].numel() // like.shape[-1],
        training,
        parts.synchroniser,
    )
    a = factors[:, None] * rstds[index]
    return TermGradients(normalised.sum(dim=1), a.to(dtype), b.to(dtype), d.to(dtype))


def affine_forward(
    sums: Sums,
    moments: Moments | None,
    like: Tensor,
    running: Running | None = None,
    synchroniser: Synchroniser | None = None,
) -> tuple[Affine, Moments]:
    """Express the batch normalisation of maps as an affine map, and compute the moments of this pass.

    Args:
        sums: of the maps.
        moments: the moments of the maps; None for those of this batch.
        like: the maps, [K, N, H, W, C].
        running: the running statistics of the maps, which move if there are no ``moments``.
    """
    if moments is None:
        positions = like[0].numel() // like.shape[-1]
        moments = batch_norm.moments(sums, positions, synchroniser)
        batch_norm.update(running, moments, positions, synchroniser)
    rstd, dtype = batch_norm.rstd(moments.var), precise(like.dtype)
    return Affine(rstd.to(dtype), (-moments.mean * rstd).to(dtype)), moments


def affine_backward(
    sums: Sums, moments: Moments, like: Tensor, training: bool, synchroniser: Synchroniser | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a, b and d such that the gradient of the maps is a · (gradient of the normalised ones) + b · maps + d.

    Args:
        sums: Σ of the gradient of the normalised maps, and Σ of its product with these.
        like: the maps, [K, N, H, W, C].
        training: whether the moments are those of the batch.
    """
    mean, rstd = moments.mean, batch_norm.rstd(moments.var)
    positions = like[0].numel() // like.shape[-1]
    b, d = batch_norm.backward(mean, rstd, *sums.whole(), positions, training, synchroniser)
    dtype = precise(like.dtype)
    return rstd.to(dtype), b.to(dtype), d.to(dtype)


def _for_all(moments: Moments, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute mean and 1/√(var + ε) of every map; 0 and 1 for those that are not normalised."""
    missing = (0, 0, 0, sum(map(len, maps)) - len(moments.mean))
    return F.pad(moments.mean, missing), F.pad(batch_norm.rstd(moments.var), missing, value=1.0)
