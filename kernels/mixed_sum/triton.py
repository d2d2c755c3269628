"""The mixed sum in Triton, and the sums of its backward pass, specified by :mod:`.reference`. One launch each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ..launching import fits, grid, locate
from ..records import Terms
from ..tables import table
from . import reference
from .triton_kernels import DTYPES, OPTIONS, configurations, mixed_sum_kernel, product_sum_kernel

__all__ = ["backward", "configurations", "forward", "partial_sums", "supports", "weighted"]


def forward(
    maps: Sequence[Tensor], terms: Terms, weight: Tensor, offset: Tensor, into: Sequence[Tensor | None]
) -> list[Tensor]:
    """Compute E sums [N, H, W, C], contiguous in memory, see :func:`.reference.forward`; terms in any order."""
    if not supports(maps):
        return reference.forward(maps, terms, weight, offset, into)
    return weighted(maps, terms, weight, offset, into, of_terms=False)


def supports(maps: Sequence[Tensor]) -> bool:
    """Whether the kernels support stacks of maps; otherwise the reference runs."""
    return fits(maps[0], DTYPES) and maps[0].shape[1:].numel() > 0


def weighted(
    maps: Sequence[Tensor],
    terms: Terms,
    weight: Tensor,
    offset: Tensor,
    into: Sequence[Tensor | None],
    of_terms: bool,
) -> list[Tensor]:
    """Compute the sums of :func:`forward` of maps that fit, with an offset per edge or, if ``of_terms``, per term."""
    like = maps[0]
    count, channels = terms.edge_count, like.shape[-1]
    stacks = locate(maps, like.dtype, like)
    others = locate((None if one is None else one[None] for one in into), like.dtype, like)
    out = like.new_empty(count, *like.shape[1:])
    rows = like.shape[1:-1].numel()
    order = sorted(range(len(terms.edges)), key=terms.edges.__getitem__)
    of_term = [(t, t if of_terms else -1, *stacks.places[terms.index[t]]) for t in order]
    firsts = accumulate((terms.edges.count(e) for e in range(count)), initial=0)
    places = [*others.places, (-1, 0)]
    of_edge = [
        (first, -1 if of_terms else e, *place) for e, (first, place) in enumerate(zip(firsts, places, strict=True))
    ]
    with torch.cuda.device_of(out):
        mixed_sum_kernel[grid(count, rows, channels, OPTIONS)](
            p_out=out,
            **others.arguments("p_into"),
            **stacks.arguments("p_maps"),
            p_edges=table(tuple(of_edge), out.device),
            p_terms=table(tuple(of_term), out.device),
            p_factor=weight.float().contiguous(),
            p_offset=offset.float().contiguous(),
            edges=count,
            rows=rows,
            channels=channels,
            **OPTIONS,
        )
    return [*out.unbind()]


def backward(grads: Sequence[Tensor], maps: Sequence[Tensor], terms: Terms) -> tuple[Tensor, Tensor]:
    """Compute (Σ grad[e], [E, C]; Σ grad[edges[t]] · map[index[t]], [T, C]), as :func:`.reference.backward`."""
    if not supports(maps):
        return reference.backward(grads, maps, terms)
    totals, products = (
        partial_sums(grads, maps, terms).sum(dim=1, dtype=torch.float64).split([len(grads), len(terms.index)])
    )
    return totals, products


def partial_sums(grads: Sequence[Tensor], maps: Sequence[Tensor], terms: Terms) -> Tensor:
    """Compute the sums of :func:`backward` over blocks of positions of maps that fit, float32 [E + T, blocks, C]."""
    like = maps[0]
    stacks = locate(maps, like.dtype, like)
    gradients = locate((grad[None] for grad in grads), like.dtype, like)
    pairs = [(*place, -1, 0) for place in gradients.places]
    pairs += [(*gradients.places[e], *stacks.places[i]) for i, e in zip(terms.index, terms.edges, strict=True)]
    rows, channels = like.shape[1:-1].numel(), like.shape[-1]
    sums = like.new_empty(len(pairs), triton.cdiv(rows, OPTIONS["BLOCK_R"]), channels, dtype=torch.float32)
    with torch.cuda.device_of(like):
        product_sum_kernel[grid(len(pairs), rows, channels, OPTIONS)](
            p_sums=sums,
            **gradients.arguments("p_gradients"),
            **stacks.arguments("p_maps"),
            p_pairs=table(tuple(pairs), like.device),
            pairs=len(pairs),
            rows=rows,
            channels=channels,
            **OPTIONS,
        )
    return sums
