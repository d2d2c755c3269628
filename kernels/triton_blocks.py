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
def located(p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7, p_place, size):
    """Find a map by its place, (base, number): its pointer, and whether there is one; ``size`` elements a map."""
    i_base, i_number = tl.load(p_place), tl.load(p_place + 1)
    p_low = tl.where(i_base <= 0, p_0, tl.where(i_base == 1, p_1, tl.where(i_base == 2, p_2, p_3)))
    p_high = tl.where(i_base == 4, p_4, tl.where(i_base == 5, p_5, tl.where(i_base == 6, p_6, p_7)))
    return tl.where(i_base < 4, p_low, p_high) + i_number * size, i_base >= 0


@triton.jit
def prologue(
    p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a, p_b, p_d,
    i_k, size, o_o, mask_o, outputs,
):  # fmt: skip
    """Locate the gradient and z of a branch, ``size`` numbers each, and load a, b and d of some channels.

    Table of places, [branches, 4]: that of the gradient, and that of z.
    """
    p_grad, _ = located(
        p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places + 4 * i_k, size
    )
    p_z, _ = located(
        p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places + 4 * i_k + 2, size
    )
    o_a = i_k * outputs + o_o
    b_a = tl.load(p_a + o_a, mask=mask_o, other=0)
    b_b = tl.load(p_b + o_a, mask=mask_o, other=0)
    b_d = tl.load(p_d + o_a, mask=mask_o, other=0)
    return p_grad, p_z, b_a, b_b, b_d


@triton.jit
def delta(p_grad, p_z, o_z, mask, b_a, b_b, b_d):
    """Compute the gradient of z_k, a·g + b·z + d, [rows, outputs]; d where the mask does not hold."""
    b_grad = tl.load(p_grad + o_z, mask=mask, other=0).to(tl.float32)
    b_z = tl.load(p_z + o_z, mask=mask, other=0).to(tl.float32)
    return (b_a[None, :] * b_grad + b_b[None, :] * b_z + b_d[None, :]).to(p_z.dtype.element_ty)


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
