"""Triton kernels of the mixed sum, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. Maps lie in up to eight stacks; tables hold their
places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..launching import Configuration
from ..triton_blocks import located

#: The dtypes of maps; sums are float32 or wider.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPTIONS: dict[str, Any] = {"BLOCK_R": 128, "BLOCK_C": 16, "num_warps": 4, "num_stages": 1}


@triton.jit
def mixed_sum_kernel(
    p_out, p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7,
    p_edges, p_terms, p_factor, p_offset, edges, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute out[e], [rows, channels].

    Tables: of edges, [E + 1, 4], the first term, the row of its offset or -1, and the place of the map to add; of
    terms, [T, 4], the row of its factor or -1 for 1, that of its offset or -1, and the place of its map.
    """
    i_e, i_row = (tl.program_id(0) % edges).to(tl.int64), tl.program_id(0) // edges * BLOCK_R
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < channels
    mask = (o_r < rows - i_row)[:, None] & mask_c[None, :]
    i_first, o_map = i_row.to(tl.int64) * channels, (o_r * channels)[:, None] + o_c[None, :]
    size = tl.cast(rows, tl.int64) * channels
    p_into, is_given = located(
        p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_edges + 4 * i_e + 2, size
    )
    b_out = tl.load(p_into + i_first + o_map, mask=mask & is_given, other=0).to(tl.float32)
    i_offset = tl.load(p_edges + 4 * i_e + 1)
    b_out += tl.load(p_offset + i_offset * channels + o_c, mask=mask_c & (i_offset >= 0), other=0)[None, :]
    for i_t in range(tl.load(p_edges + 4 * i_e), tl.load(p_edges + 4 * i_e + 4)):
        i_factor, i_offset = tl.load(p_terms + 4 * i_t), tl.load(p_terms + 4 * i_t + 1)
        p_map, _ = located(
            p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_terms + 4 * i_t + 2, size
        )
        b_factor = tl.load(p_factor + i_factor * channels + o_c, mask=mask_c & (i_factor >= 0), other=1)
        b_offset = tl.load(p_offset + i_offset * channels + o_c, mask=mask_c & (i_offset >= 0), other=0)
        b_map = tl.load(p_map + i_first + o_map, mask=mask, other=0).to(tl.float32)
        b_out += b_factor[None, :] * b_map + b_offset[None, :]
    p_block = p_out + i_e * rows * channels + i_first + o_map
    tl.store(p_block, b_out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def product_sum_kernel(
    p_sums, p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_pairs,
    pairs, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute Σ gradient · map per block of rows, [pairs, blocks, channels], from a table of places, [pairs, 4].

    Without a map, Σ gradient.
    """
    i_k, i_r = (tl.program_id(0) % pairs).to(tl.int64), tl.program_id(0) // pairs
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < channels
    mask = (o_r < rows - i_r * BLOCK_R)[:, None] & mask_c[None, :]
    o_map = i_r.to(tl.int64) * BLOCK_R * channels + (o_r * channels)[:, None] + o_c[None, :]
    size = tl.cast(rows, tl.int64) * channels
    p_grad, _ = located(p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_pairs + 4 * i_k, size)
    p_map, is_given = located(
        p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_pairs + 4 * i_k + 2, size
    )
    b_grad = tl.load(p_grad + o_map, mask=mask, other=0).to(tl.float32)
    b_map = tl.load(p_map + o_map, mask=mask & is_given, other=1).to(tl.float32)
    p_block = p_sums + (i_k * tl.cdiv(rows, BLOCK_R) + i_r) * channels + o_c
    tl.store(p_block, tl.sum(b_grad * b_map, axis=0), mask=mask_c)


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    for dtype in DTYPES:
        yield Configuration(mixed_sum_kernel, dtype, (), sum_options(dtype))
        yield Configuration(product_sum_kernel, dtype, (), OPTIONS)


def sum_options(dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of the sum of maps of a dtype."""
    # The narrow ones spilled on some card with lower limits, and without one. Of sizes that 16 divides they use 80.
    return {**OPTIONS, "maxnreg": 128} if dtype.itemsize == 2 else OPTIONS
