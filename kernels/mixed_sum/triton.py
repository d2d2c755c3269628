"""The mixed sum in Triton, and the sums of its backward pass: :mod:`.reference` specifies them. One launch each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ..launching import addresses, fits, grid, table
from . import reference
from .triton_kernels import DTYPES, OPTIONS, configurations, mixed_sum_kernel, product_sum_kernel

__all__ = ["backward", "configurations", "forward"]


def forward(
    maps: Sequence[Tensor],
    index: Sequence[int],
    edges: Sequence[int],
    weight: Tensor,
    offset: Tensor,
    into: Sequence[Tensor] = (),
) -> list[Tensor]:
    """E sums [N, H, W, C], neighbours in memory; as :func:`.reference.forward`, with terms in any order."""
    like = maps[0]
    if not fits(like, DTYPES):
        return reference.forward(maps, index, edges, weight, offset, into)
    stacks, places = addresses(maps, like.dtype)
    others, other_places = addresses([one[None] for one in into], like.dtype)
    count, channels = offset.shape
    out = like.new_empty(count, *like.shape[1:])
    rows = like.shape[1:-1].numel()
    order = sorted(range(len(edges)), key=edges.__getitem__)
    terms = table([(places[index[t]], t) for t in order], out.device)
    firsts = accumulate((edges.count(e) for e in range(count)), initial=0)
    sums = table([*zip(firsts, [*(other_places or [0] * count), 0], strict=True)], out.device)
    with torch.cuda.device_of(out):
        mixed_sum_kernel[grid(count, rows, channels, OPTIONS)](
            out, sums, terms, weight.float().contiguous(), offset.float().contiguous(), count, rows, channels, **OPTIONS
        )
    del stacks, others  # read until here
    return [*out.unbind()]


def backward(
    maps: Sequence[Tensor], index: Sequence[int], edges: Sequence[int], grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(Σ grad[e], [E, C]; Σ grad[edges[t]] · map[index[t]], [T, C]), float64; as :func:`.reference.backward`."""
    like = maps[0]
    if not fits(like, DTYPES):
        return reference.backward(maps, index, edges, grads)
    stacks, places = addresses(maps, like.dtype)
    gradients, grad_places = addresses([grad[None] for grad in grads], like.dtype)
    pairs = [(place, 0) for place in grad_places]
    pairs += [(grad_places[e], places[i]) for i, e in zip(index, edges, strict=True)]
    rows, channels = like.shape[1:-1].numel(), like.shape[-1]
    sums = like.new_empty(len(pairs), triton.cdiv(rows, OPTIONS["BLOCK_R"]), channels, dtype=torch.float32)
    with torch.cuda.device_of(like):
        product_sum_kernel[grid(len(pairs), rows, channels, OPTIONS)](
            sums, table(pairs, like.device), gradients[0], len(pairs), rows, channels, **OPTIONS
        )
    del stacks, gradients  # read until here
    totals, products = sums.sum(dim=1, dtype=torch.float64).split([len(grads), len(index)])
    return totals, products
