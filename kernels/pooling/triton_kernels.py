"""Triton kernels of the 3×3 pools, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. A row is a position of one image, (n, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..launching import Configuration
from ..triton_blocks import block_rows, inside, store_sums

#: The dtypes of activations; sums are float32 or wider.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STRIDES = (1, 2)


@triton.jit
def _window(p_image, o_n, o_h, o_w, height, width, channels, o_c, mask):
    """Compute the maximum, its position among the 9, the sum and the number of elements inside each window.

    Among equal maxima the first counts, among several NaN the last, as in ``torch.max_pool2d``.
    """
    b_max = tl.full(mask.shape, 0, dtype=tl.float32)
    b_chosen = tl.full(mask.shape, -1, dtype=tl.int32)
    b_sum = tl.full(mask.shape, 0, dtype=tl.float32)
    b_number = tl.full(o_h.shape, 0, dtype=tl.int32)
    for i_tap in range(9):
        o_tap_h, o_tap_w = o_h + i_tap // 3, o_w + i_tap % 3
        is_inside = inside(o_tap_h, o_tap_w, height, width)
        o_x = (((o_n * height + o_tap_h) * width + o_tap_w) * channels)[:, None] + o_c[None, :]
        b_x = tl.load(p_image + o_x, mask=mask & is_inside[:, None], other=0).to(tl.float32)
        takes = is_inside[:, None] & ((b_x > b_max) | (b_x != b_x) | (b_chosen < 0))
        b_max, b_chosen = tl.where(takes, b_x, b_max), tl.where(takes, i_tap, b_chosen)
        b_sum += b_x
        b_number += is_inside.to(tl.int32)
    return b_max, b_chosen, b_sum, b_number


@triton.jit(do_not_specialize=["stride"])
def pooling_kernel(
    p_z, p_sums, p_x, rows, channels, height, width, out_height, out_width, stride,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute both pools, [2, rows, channels], and Σ z and Σ z² of each block of rows."""
    i_r = tl.program_id(0)
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_r, i_n, o_n, o_h, o_w = block_rows(i_r * BLOCK_R, rows, out_height, out_width, BLOCK_R)
    mask = mask_r[:, None] & (o_c < channels)[None, :]
    p_image = p_x + i_n * height * width * channels
    b_max, _, b_sum, b_number = _window(
        p_image, o_n, o_h * stride - 1, o_w * stride - 1, height, width, channels, o_c, mask
    )
    b_average = b_sum / b_number.to(tl.float32)[:, None]
    for i_pool in tl.static_range(2):
        b_z = tl.where(mask, b_max if i_pool == 0 else b_average, 0)
        p_block = p_z + (tl.cast(i_pool, tl.int64) * rows + i_r * BLOCK_R) * channels
        tl.store(p_block + (o_r * channels)[:, None] + o_c[None, :], b_z.to(p_z.dtype.element_ty), mask=mask)
        store_sums(p_sums, b_z, b_z, tl.cast(i_pool, tl.int64), 2, i_r, tl.cdiv(rows, BLOCK_R), o_c, channels)


@triton.jit
def pooling_backward_kernel(
    p_grad, p_grad_max, p_grad_average, p_x, rows, channels, height, width, out_height, out_width,
    STRIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of x: each position gathers from the up to 9 windows that contain it."""
    i_row = tl.program_id(0) * BLOCK_R
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_r, i_n, o_n, o_h, o_w = block_rows(i_row, rows, height, width, BLOCK_R)
    mask = mask_r[:, None] & (o_c < channels)[None, :]
    p_image = p_x + i_n * height * width * channels
    i_first = i_n * out_height * out_width * channels
    b_grad = tl.full(mask.shape, 0, dtype=tl.float32)
    for i_tap in range(9):
        o_from_h, o_from_w = o_h + 1 - i_tap // 3, o_w + 1 - i_tap % 3
        o_z_h, o_z_w = o_from_h // STRIDE, o_from_w // STRIDE
        whole = (o_from_h % STRIDE == 0) & (o_from_w % STRIDE == 0)
        mask_z = mask & (whole & inside(o_z_h, o_z_w, out_height, out_width))[:, None]
        _, b_chosen, _, b_number = _window(
            p_image, o_n, o_from_h - 1, o_from_w - 1, height, width, channels, o_c, mask_z
        )
        o_z = (((o_n * out_height + o_z_h) * out_width + o_z_w) * channels)[:, None] + o_c[None, :]
        b_grad += tl.load(p_grad_max + i_first + o_z, mask=mask_z & (b_chosen == i_tap), other=0).to(tl.float32)
        b_average = tl.load(p_grad_average + i_first + o_z, mask=mask_z, other=0).to(tl.float32)
        b_grad += b_average / tl.maximum(b_number, 1).to(tl.float32)[:, None]
    p_block = p_grad + i_row.to(tl.int64) * channels + (o_r * channels)[:, None] + o_c[None, :]
    tl.store(p_block, b_grad.to(p_grad.dtype.element_ty), mask=mask)


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    for dtype in DTYPES:
        yield Configuration(pooling_kernel, dtype, (), options())
        for stride in STRIDES:
            yield Configuration(pooling_backward_kernel, dtype, (), backward_options(stride))


def options() -> dict[str, Any]:
    return {"BLOCK_R": 64, "BLOCK_C": 16, "num_warps": 4, "num_stages": 1}


def backward_options(stride: int) -> dict[str, Any]:
    return {"STRIDE": stride, **options()}
