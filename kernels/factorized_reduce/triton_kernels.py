"""Triton kernels of factorized reductions, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. A row is a position of a reduced image, (n, h, w).
Half 0 of the outputs reads position (2h, 2w) of x, half 1 position (2h + 1, 2w + 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from bionas_fast.choices import Products

from ..launching import Configuration, precisions
from ..triton_blocks import block_rows, delta, inside, prologue

#: The dtypes of maps; sums are float32, and factors of products have the dtype of the maps.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Maximum channels of a block; blocks are as small as possible.
WIDTHS = (16, 32)


@triton.jit
def _half(p_first, p_second, i_half, channels):
    """Return the matrices of a half, the first of its outputs, and their number."""
    first = tl.cdiv(channels, 2)
    p_weight = tl.where(i_half == 0, p_first, p_second)
    return p_weight, tl.where(i_half == 0, 0, first), tl.where(i_half == 0, first, channels - first)


@triton.jit
def _seen(p_x, i_row, rows, i_half, height, width, out_height, out_width, o_c, channels, BLOCK_R: tl.constexpr):
    """Load ReLU(x) of a half; 0 beyond the image."""
    mask_r, i_n, o_n, o_h, o_w = block_rows(i_row, rows, out_height, out_width, BLOCK_R)
    mask_r = mask_r & inside(2 * o_h + i_half, 2 * o_w + i_half, height, width)
    o_x = ((o_n * height + 2 * o_h + i_half) * width + 2 * o_w + i_half) * channels
    p_image, mask = p_x + i_n * height * width * channels, mask_r[:, None] & (o_c < channels)[None, :]
    b_x = tl.load(p_image + o_x[:, None] + o_c[None, :], mask=mask, other=0)
    return tl.where(b_x < 0, 0, b_x)  # propagates NaN


@triton.jit(do_not_specialize=["count", "rows", "height", "width", "out_height", "out_width"])
def reduction_kernel(
    p_z, p_sums, p_x, p_first, p_second, count, rows, channels, height, width, out_height, out_width,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute z of all reductions, [count, rows, channels], and Σ z and Σ z² of each block of rows.

    The second dimension of the grid counts the halves and within each blocks of outputs.
    """
    i_k, i_r = (tl.program_id(0) % count).to(tl.int64), tl.program_id(0) // count
    blocks = tl.num_programs(1) // 2
    i_half = tl.program_id(1) // blocks
    p_weight, i_first, outputs = _half(p_first, p_second, i_half, channels)
    o_r, o_o = tl.arange(0, BLOCK_R), tl.program_id(1) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_o = o_o < outputs
    b_z = tl.zeros((BLOCK_R, BLOCK_O), dtype=tl.float32)
    for i_c in range(0, channels, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        b_x = _seen(p_x, i_r * BLOCK_R, rows, i_half, height, width, out_height, out_width, o_c, channels, BLOCK_R)
        p_block = p_weight + i_k * outputs * channels + (o_o * channels)[None, :] + o_c[:, None]
        b_weight = tl.load(p_block, mask=(o_c < channels)[:, None] & mask_o[None, :], other=0)
        b_z = tl.dot(b_x, b_weight.to(b_x.dtype), b_z, input_precision=PRECISION)
    mask = (o_r < rows - i_r * BLOCK_R)[:, None] & mask_o[None, :]
    p_block = p_z + (i_k * rows + i_r * BLOCK_R) * channels + i_first
    tl.store(p_block + (o_r * channels)[:, None] + o_o[None, :], b_z.to(p_z.dtype.element_ty), mask=mask)
    b_z = tl.where(mask, b_z, 0)
    own_blocks = tl.cdiv(rows, BLOCK_R)
    p_block = p_sums + (i_k * own_blocks + i_r) * channels + i_first + o_o
    tl.store(p_block, tl.sum(b_z, axis=0), mask=mask_o)
    p_block += tl.cast(count, tl.int64) * own_blocks * channels
    tl.store(p_block, tl.sum(b_z * b_z, axis=0), mask=mask_o)


@triton.jit(do_not_specialize=["count", "rows", "height", "width", "out_height", "out_width"])
def reduction_error_kernel(
    p_grad, p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a, p_b, p_d,
    p_x, p_first, p_second, count, rows, channels, height, width, out_height, out_width,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of x through the feedback matrices: each row writes a square of two by two positions."""
    i_row = tl.program_id(0) * BLOCK_R
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_r, i_n, o_n, o_h, o_w = block_rows(i_row, rows, out_height, out_width, BLOCK_R)
    mask_c, size = o_c < channels, tl.cast(rows, tl.int64) * channels
    p_image = p_grad + i_n * height * width * channels
    for i_half in tl.static_range(2):
        p_weight, i_first, outputs = _half(p_first, p_second, i_half, channels)
        b_grad = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
        for i_k in range(count):
            for i_o in range(0, outputs, BLOCK_O):
                o_o = i_o + tl.arange(0, BLOCK_O)
                mask_o = o_o < outputs
                p_up, p_z, b_a, b_b, b_d = prologue(
                    p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a,
                    p_b, p_d, i_k, size, i_first + o_o, mask_o, channels,
                )  # fmt: skip
                i_block = i_row.to(tl.int64) * channels
                o_z = (o_r * channels)[:, None] + (i_first + o_o)[None, :]
                mask_z = mask_r[:, None] & mask_o[None, :]
                b_delta = delta(p_up + i_block, p_z + i_block, o_z, mask_z, b_a, b_b, b_d)
                p_matrix = p_weight + i_k * outputs * channels + (o_o * channels)[:, None] + o_c[None, :]
                b_weight = tl.load(p_matrix, mask=mask_o[:, None] & mask_c[None, :], other=0)
                b_grad = tl.dot(b_delta, b_weight.to(b_delta.dtype), b_grad, input_precision=PRECISION)
        b_x = _seen(p_x, i_row, rows, i_half, height, width, out_height, out_width, o_c, channels, BLOCK_R)
        b_grad = tl.where(b_x > 0, b_grad, 0)
        for i_w in tl.static_range(2):
            o_x = ((o_n * height + 2 * o_h + i_half) * width + 2 * o_w + i_w) * channels
            mask_x = mask_r & inside(2 * o_h + i_half, 2 * o_w + i_w, height, width)
            b_own = (b_grad if i_w == i_half else tl.zeros_like(b_grad)).to(p_grad.dtype.element_ty)
            tl.store(p_image + o_x[:, None] + o_c[None, :], b_own, mask=mask_x[:, None] & mask_c[None, :])


@triton.jit(do_not_specialize=["count", "rows", "height", "width", "out_height", "out_width"])
def reduction_weight_kernel(
    p_weight_grad, p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a, p_b, p_d,
    p_x, count, rows, channels, height, width, out_height, out_width,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute both weight gradients over the rows of this program, [count, outputs, channels] after one another.

    The last dimension of the grid counts the halves, within each blocks of outputs, and within each of inputs.
    """
    i_k, i_p, programs = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    in_blocks = tl.cdiv(channels, BLOCK_C)
    blocks = tl.num_programs(2) // 2
    i_half, i_block = tl.program_id(2) // blocks, tl.program_id(2) % blocks
    first = tl.cdiv(channels, 2)
    _, i_first, outputs = _half(p_weight_grad, p_weight_grad, i_half, channels)
    o_o = i_block // in_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    o_c = i_block % in_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_o, size, o_r = o_o < outputs, tl.cast(rows, tl.int64) * channels, tl.arange(0, BLOCK_R)
    p_up, p_z, b_a, b_b, b_d = prologue(
        p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a, p_b, p_d, i_k,
        size, i_first + o_o, mask_o, channels,
    )  # fmt: skip
    b_grad = tl.zeros((BLOCK_O, BLOCK_C), dtype=tl.float32)
    for i_row in range(i_p * BLOCK_R, rows, programs * BLOCK_R):
        mask_r, i_z = (o_r < rows - i_row)[:, None], tl.cast(i_row, tl.int64) * channels
        o_z = (o_r * channels)[:, None] + (i_first + o_o)[None, :]
        b_delta = delta(p_up + i_z, p_z + i_z, o_z, mask_r & mask_o[None, :], b_a, b_b, b_d)
        b_x = _seen(p_x, i_row, rows, i_half, height, width, out_height, out_width, o_c, channels, BLOCK_R)
        b_delta = tl.trans(tl.where(mask_r, b_delta, 0))
        b_grad = tl.dot(b_delta, b_x, b_grad, input_precision=PRECISION)
    p_block = p_weight_grad + tl.cast(i_p, tl.int64) * count * channels * channels
    p_block += tl.where(i_half == 0, 0, count * first * channels) + i_k * outputs * channels
    tl.store(
        p_block + (o_o * channels)[:, None] + o_c[None, :], b_grad, mask=mask_o[:, None] & (o_c < channels)[None, :]
    )


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    for dtype in DTYPES:
        for width in WIDTHS:
            for precision in precisions(dtype):
                for kernel in (reduction_kernel, reduction_error_kernel, reduction_weight_kernel):
                    yield Configuration(kernel, dtype, (), options(width, precision))


def options(channels: int, precision: Products) -> dict[str, Any]:
    width = next((width for width in WIDTHS if channels <= width), WIDTHS[-1])
    blocks = {"BLOCK_R": 64, "BLOCK_C": width, "BLOCK_O": 16}
    # Without a limit, the assembler would rather spill than use more than 128 registers.
    return {"PRECISION": precision, **blocks, "num_warps": 4, "num_stages": 1, "maxnreg": 255}
