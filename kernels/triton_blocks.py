"""Functions that the Triton kernels of several ops share.

A row is a position of one image, (n, h, w); activations are [rows, C].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_rows(i_row, rows, height, width, BLOCK_R: tl.constexpr):
    """Locate the rows of a block: validity, the first image, and each row's image (relative to it), row and column."""
    o_row = i_row + tl.arange(0, BLOCK_R)
    i_n = i_row // (height * width)
    return o_row < rows, i_n.to(tl.int64), o_row // (height * width) - i_n, o_row // width % height, o_row % width


@triton.jit
def located(p_0, p_1, p_2, p_3, p_place, size):
    """Find a map by its place, (base, number): its pointer, and whether there is one; ``size`` elements a map."""
    i_base, i_number = tl.load(p_place), tl.load(p_place + 1)
    p_base = tl.where(i_base <= 0, p_0, tl.where(i_base == 1, p_1, tl.where(i_base == 2, p_2, p_3)))
    return p_base + i_number * size, i_base >= 0


@triton.jit
def inside(o_h, o_w, height, width):
    return (o_h >= 0) & (o_h < height) & (o_w >= 0) & (o_w < width)


@triton.jit
def store_sums(p_sums, b_one, b_other, i_k, count, i_r, blocks, o_c, channels):
    """Store Σ one and Σ one · other over the rows of a block into [2, count, blocks, channels]."""
    p_block, mask = p_sums + (i_k * blocks + i_r) * channels + o_c, o_c < channels
    tl.store(p_block, tl.sum(b_one, axis=0), mask=mask)
    s_products = tl.cast(count, tl.int64) * blocks * channels
    tl.store(p_block + s_products, tl.sum(b_one * b_other, axis=0), mask=mask)
