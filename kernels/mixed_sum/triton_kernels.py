"""Triton kernels of the mixed sum, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. Maps are separate tensors; tables hold their addresses,
0 for None.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..launching import Configuration

#: The dtypes of maps; sums are float32 or wider.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPTIONS: dict[str, Any] = {"BLOCK_R": 128, "BLOCK_C": 16, "num_warps": 4, "num_stages": 1}


@triton.jit
def mixed_sum_kernel(
    p_out, p_edges, p_terms, p_factor, p_offset, edges, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Compute out[e], [rows, channels].

    Tables: of edges, [E + 1, 2], the first term and the map to add; of terms, [T, 2], the map and the row of factors.
    """
    i_e, i_row = (tl.program_id(0) % edges).to(tl.int64), tl.program_id(0) // edges * BLOCK_R
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < channels
    mask = (o_r < rows - i_row)[:, None] & mask_c[None, :]
    i_first, o_map = i_row.to(tl.int64) * channels, (o_r * channels)[:, None] + o_c[None, :]
    i_into = tl.load(p_edges + 2 * i_e + 1)
    b_out = tl.load(i_into.to(p_out.dtype) + i_first + o_map, mask=mask & (i_into != 0), other=0).to(tl.float32)
    b_out += tl.load(p_offset + i_e * channels + o_c, mask=mask_c, other=0)[None, :]
    for i_t in range(tl.load(p_edges + 2 * i_e), tl.load(p_edges + 2 * i_e + 2)):
        p_map = tl.load(p_terms + 2 * i_t).to(p_out.dtype)
        b_factor = tl.load(p_factor + tl.load(p_terms + 2 * i_t + 1) * channels + o_c, mask=mask_c, other=0)
        b_out += b_factor[None, :] * tl.load(p_map + i_first + o_map, mask=mask, other=0).to(tl.float32)
    p_block = p_out + i_e * rows * channels + i_first + o_map
    tl.store(p_block, b_out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def product_sum_kernel(
    p_sums, p_pairs, p_like, pairs, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Compute Σ gradient · map per block of rows, [pairs, blocks, channels], from a table of addresses, [pairs, 2].

    Without a map, Σ gradient. ``p_like`` only provides the dtype of the maps and gradients.
    """
    i_k, i_r = (tl.program_id(0) % pairs).to(tl.int64), tl.program_id(0) // pairs
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < channels
    mask = (o_r < rows - i_r * BLOCK_R)[:, None] & mask_c[None, :]
    o_map = i_r.to(tl.int64) * BLOCK_R * channels + (o_r * channels)[:, None] + o_c[None, :]
    i_grad, i_map = tl.load(p_pairs + 2 * i_k), tl.load(p_pairs + 2 * i_k + 1)
    b_grad = tl.load(i_grad.to(p_like.dtype) + o_map, mask=mask, other=0).to(tl.float32)
    b_map = tl.load(i_map.to(p_like.dtype) + o_map, mask=mask & (i_map != 0), other=1).to(tl.float32)
    p_block = p_sums + (i_k * tl.cdiv(rows, BLOCK_R) + i_r) * channels + o_c
    tl.store(p_block, tl.sum(b_grad * b_map, axis=0), mask=mask_c)


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    for dtype in DTYPES:
        yield Configuration(mixed_sum_kernel, dtype, (), OPTIONS)
        yield Configuration(product_sum_kernel, dtype, (), OPTIONS)
