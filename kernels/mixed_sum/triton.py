"""The mixed sum in Triton, and the sums of its backward pass, specified by :mod:`.reference`. One launch each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..launching import Place, fits, grid, locate
from ..records import Terms
from ..tables import Row, table
from . import reference
from .triton_kernels import DTYPES, OPTIONS, configurations, mixed_sum_kernel, product_sum_kernel, sum_options

__all__ = ["Rows", "backward", "configurations", "forward", "partial_sums", "supports", "weighted"]


class Rows(NamedTuple):
    """The rows of factors and offsets that the sums read.

    Attributes:
        factors: of each term; -1 for a factor of 1.
        of_terms, of_edges: the offset of each term and of each edge; -1 for none.
    """

    factors: tuple[int, ...]
    of_terms: tuple[int, ...]
    of_edges: tuple[int, ...]

    @classmethod
    def of(cls, terms: Terms, offset_of_terms: bool) -> Rows:
        """Return rows in order: a factor for each term, and an offset for each term or for each edge."""
        count, edges = len(terms.index), terms.edge_count
        own, none = (*range(count),), (-1,) * count
        if offset_of_terms:
            return cls(own, own, (-1,) * edges)
        return cls(own, none, (*range(edges),))


def forward(
    maps: Sequence[Tensor], terms: Terms, weight: Tensor, offset: Tensor, into: Sequence[Tensor | None]
) -> list[Tensor]:
    """Compute E sums [N, H, W, C], contiguous in memory, see :func:`.reference.forward`; terms in any order."""
    if not supports(maps):
        return reference.forward(maps, terms, weight, offset, into)
    return [*weighted(maps, terms, weight, offset, into, Rows.of(terms, offset_of_terms=False)).unbind()]


def supports(maps: Sequence[Tensor]) -> bool:
    """Whether the kernels support stacks of maps; otherwise the reference runs."""
    return fits(maps[0], DTYPES) and maps[0].shape[1:].numel() > 0


def weighted(
    maps: Sequence[Tensor],
    terms: Terms,
    weight: Tensor,
    offset: Tensor,
    into: Sequence[Tensor | None],
    rows: Rows,
) -> Tensor:
    """Compute the sums of :func:`forward` of maps that fit, [E, ...], with these rows of ``weight`` and ``offset``."""
    like = maps[0]
    count, channels = terms.edge_count, like.shape[-1]
    found = locate([*maps, *(None if one is None else one[None] for one in into)], like.dtype, like)
    out = like.new_empty(count, *like.shape[1:])
    positions = like.shape[1:-1].numel()
    of_edges, of_terms = _sum_tables(terms, rows, found.places)
    options = sum_options(like.dtype)
    with torch.cuda.device_of(out):
        mixed_sum_kernel[grid(count, positions, channels, options)](
            p_out=out,
            **found.arguments("p_maps"),
            p_edges=table(of_edges, out.device),
            p_terms=table(of_terms, out.device),
            p_factor=weight.float().contiguous(),
            p_offset=offset.float().contiguous(),
            edges=count,
            rows=positions,
            channels=channels,
            **options,
        )
    return out


@lru_cache(maxsize=1024)
def _sum_tables(terms: Terms, rows: Rows, places: tuple[Place, ...]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Make the tables of edges and of terms; the last places are those of the tensors to add to."""
    maps = len(places) - terms.edge_count
    order = sorted(range(len(terms.edges)), key=terms.edges.__getitem__)
    of_terms = tuple((rows.factors[t], rows.of_terms[t], *places[terms.index[t]]) for t in order)
    firsts = accumulate((terms.edges.count(e) for e in range(terms.edge_count)), initial=0)
    each = zip(firsts, (*rows.of_edges, -1), (*places[maps:], (-1, 0)), strict=True)
    return tuple((first, row, *place) for first, row, place in each), of_terms


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
    found = locate([*maps, *(grad[None] for grad in grads)], like.dtype, like)
    pairs = _pairs(terms, found.places)
    rows, channels = like.shape[1:-1].numel(), like.shape[-1]
    sums = like.new_empty(len(pairs), triton.cdiv(rows, OPTIONS["BLOCK_R"]), channels, dtype=torch.float32)
    with torch.cuda.device_of(like):
        product_sum_kernel[grid(len(pairs), rows, channels, OPTIONS)](
            p_sums=sums,
            **found.arguments("p_maps"),
            p_pairs=table(pairs, like.device),
            pairs=len(pairs),
            rows=rows,
            channels=channels,
            **OPTIONS,
        )
    return sums


@lru_cache(maxsize=1024)
def _pairs(terms: Terms, places: tuple[Place, ...]) -> tuple[Row, ...]:
    """Pair each gradient with no map, then that of each term with its map; the last places are those of gradients."""
    grads = places[len(places) - terms.edge_count :]
    products = ((*grads[e], *places[i]) for i, e in zip(terms.index, terms.edges, strict=True))
    return (*((*place, -1, 0) for place in grads), *products)
