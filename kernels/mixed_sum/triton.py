"""The mixed sum in Triton, and the sums of its backward pass, specified by :mod:`.reference`. One launch each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ..launching import address_table, addresses, fits, grid
from ..records import Terms
from . import reference
from .triton_kernels import DTYPES, OPTIONS, configurations, mixed_sum_kernel, product_sum_kernel

__all__ = ["backward", "configurations", "forward"]


def forward(
    maps: Sequence[Tensor], terms: Terms, weight: Tensor, offset: Tensor, into: Sequence[Tensor | None]
) -> list[Tensor]:
    """Compute E sums [N, H, W, C], contiguous in memory, see :func:`.reference.forward`; terms in any order."""
    like = maps[0]
    if not fits(like, DTYPES):
        return reference.forward(maps, terms, weight, offset, into)
    stacks, places = addresses(_each(maps), like.dtype)
    others, other_places = addresses(into, like.dtype)
    count, channels = offset.shape
    out = like.new_empty(count, *like.shape[1:])
    rows = like.shape[1:-1].numel()
    order = sorted(range(len(terms.edges)), key=terms.edges.__getitem__)
    rows_of_terms = address_table([(places[terms.index[t]], t) for t in order], out.device)
    firsts = accumulate((terms.edges.count(e) for e in range(count)), initial=0)
    rows_of_edges = address_table([*zip(firsts, [*other_places, 0], strict=True)], out.device)
    with torch.cuda.device_of(out):
        mixed_sum_kernel[grid(count, rows, channels, OPTIONS)](
            p_out=out,
            p_edges=rows_of_edges,
            p_terms=rows_of_terms,
            p_factor=weight.float().contiguous(),
            p_offset=offset.float().contiguous(),
            edges=count,
            rows=rows,
            channels=channels,
            **OPTIONS,
        )
    del stacks, others  # alive until the launch, which reads their addresses
    return [*out.unbind()]


def backward(grads: Sequence[Tensor], maps: Sequence[Tensor], terms: Terms) -> tuple[Tensor, Tensor]:
    """Compute (Σ grad[e], [E, C]; Σ grad[edges[t]] · map[index[t]], [T, C]), as :func:`.reference.backward`."""
    like = maps[0]
    if not fits(like, DTYPES):
        return reference.backward(grads, maps, terms)
    stacks, places = addresses(_each(maps), like.dtype)
    gradients, grad_places = addresses(grads, like.dtype)
    pairs = [(place, 0) for place in grad_places]
    pairs += [(grad_places[e], places[i]) for i, e in zip(terms.index, terms.edges, strict=True)]
    rows, channels = like.shape[1:-1].numel(), like.shape[-1]
    sums = like.new_empty(len(pairs), triton.cdiv(rows, OPTIONS["BLOCK_R"]), channels, dtype=torch.float32)
    with torch.cuda.device_of(like):
        product_sum_kernel[grid(len(pairs), rows, channels, OPTIONS)](
            p_sums=sums,
            p_pairs=address_table(pairs, like.device),
            p_like=gradients[0],
            pairs=len(pairs),
            rows=rows,
            channels=channels,
            **OPTIONS,
        )
    del stacks, gradients  # alive until the launch, which reads their addresses
    totals, products = sums.sum(dim=1, dtype=torch.float64).split([len(grads), len(terms.index)])
    return totals, products


def _each(stacks: Sequence[Tensor]) -> Iterator[Tensor]:
    return (one for stack in stacks for one in stack)
