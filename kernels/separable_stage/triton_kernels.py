"""Triton kernels of separable stages, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. Every program writes its sums over positions to a
separate location, and the launcher adds them, so results are deterministic.

A thread computes several positions of an image at once, a group: it loads each column of the input once for all taps
and positions that read it. See :mod:`.triton_taps`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from bionas_fast.choices import Products

from ..launching import Configuration, precisions
from ..triton_blocks import delta, prologue
from .triton_taps import (
    GROUP,
    add_tap_gradients,
    columns_of,
    first_position,
    gather,
    gather_strided,
    groups,
    join,
    split,
    taps,
    zeros,
)

#: The dtypes of the kernels. Sums are float32 or wider; the factors of matrix products have the activations' dtype.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STRIDES, KERNELS, DILATIONS = (1, 2), (3, 5), (1, 2)
#: Maximum channels of a block; blocks are as small as possible. No kernel spills registers on sm_80, sm_90 and sm_100.
WIDTHS = (16, 32, 64)
#: Without a limit, the assembler would rather spill than use more registers than let several programs run at once.
REGISTERS = {"num_stages": 1, "maxnreg": 255}
#: Rows of taps of the largest kernel.
ROWS = tl.constexpr(max(KERNELS))
#: Arguments that no address is aligned by; kernels are compiled once for all their values.
SIZES = ("images", "height", "width", "out_height", "out_width")


@triton.jit
def _branch(p_branches, i_k):
    """Load kernel, dilation and the offset of the depthwise weights."""
    p_row = p_branches + i_k * 3
    return tl.load(p_row).to(tl.int32), tl.load(p_row + 1).to(tl.int32), tl.load(p_row + 2)


@triton.jit
def _affine(p_scale, p_shift, i_k, o_c, channels, AFFINE: tl.constexpr):
    """Load scale and shift; without an affine map they are not used."""
    if AFFINE:
        o_first, mask = i_k * channels + o_c, o_c < channels
        b_scale = tl.load(p_scale + o_first, mask=mask, other=0)
        b_shift = tl.load(p_shift + o_first, mask=mask, other=0)
    else:
        b_scale, b_shift = tl.full(o_c.shape, 1, tl.float32), tl.full(o_c.shape, 0, tl.float32)
    return b_scale, b_shift


@triton.jit(do_not_specialize=["branches", *SIZES, "own_images", "sum_rows"])
def stage_kernel(
    p_z, p_sums, p_x, p_depthwise, p_pointwise, p_scale, p_shift, p_branches,
    branches, images, inputs, outputs, height, width, out_height, out_width, own_images, sum_rows,
    PRECISION: tl.constexpr, STRIDE: tl.constexpr, AFFINE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute z_k, and Σ z and Σ z² of each block of groups. ``own_images`` is 0 if all branches share an input.

    The sums are rows of a table, [2, sum_rows, blocks, outputs].

    Blocks start at 64-bit addresses; offsets inside a block are 32-bit, which halves the registers.
    """
    i_k, i_b = (tl.program_id(0) % branches).to(tl.int64), tl.program_id(0) // branches
    kernel, dilation, i_d = _branch(p_branches, i_k)
    columns, blocks = columns_of(out_width), tl.num_programs(0) // branches
    i_first, o_n, o_h, o_column = groups(i_b * BLOCK_G, out_height, columns, BLOCK_G)
    o_w = first_position(o_column, dilation)
    o_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_o = o_o < outputs
    o_z = (((o_n * out_height + o_h) * out_width + o_w) * outputs)[:, None] + o_o[None, :]
    b_sum, b_squares = zeros(2, BLOCK_G, BLOCK_O)
    for i_n in range(i_first, images, blocks * BLOCK_G // (out_height * columns)):
        is_group = o_n < images - i_n
        p_image = p_x + (i_k * own_images + i_n) * height * width * inputs
        p_map = p_z + (i_k * images + i_n) * out_height * out_width * outputs
        b_z = tl.zeros((BLOCK_G * GROUP, BLOCK_O), dtype=tl.float32)
        for i_c in range(0, inputs, BLOCK_C):
            o_c = i_c + tl.arange(0, BLOCK_C)
            b_scale, b_shift = _affine(p_scale, p_shift, i_k, o_c, inputs, AFFINE)
            if kernel == 3:
                b_middle = taps(
                    p_image, p_depthwise + i_d, o_n, o_h * STRIDE, o_w * STRIDE, is_group, height, width, dilation,
                    o_c, inputs, b_scale, b_shift, 3, STRIDE, AFFINE,
                )  # fmt: skip
            else:
                b_middle = taps(
                    p_image, p_depthwise + i_d, o_n, o_h * STRIDE, o_w * STRIDE, is_group, height, width, dilation,
                    o_c, inputs, b_scale, b_shift, 5, STRIDE, AFFINE,
                )  # fmt: skip
            p_block = p_pointwise + i_k * outputs * inputs + (o_o * inputs)[None, :] + o_c[:, None]
            b_weight = tl.load(p_block, mask=(o_c < inputs)[:, None] & mask_o[None, :], other=0)
            b_weight = b_weight.to(p_z.dtype.element_ty)
            b_z = tl.dot(b_middle.to(b_weight.dtype), b_weight, b_z, input_precision=PRECISION)
        b_parts = split(b_z)
        for i_j in tl.static_range(GROUP):
            mask = (is_group & (o_w + i_j * dilation < out_width))[:, None] & mask_o[None, :]
            tl.store(p_map + o_z + i_j * dilation * outputs, b_parts[i_j].to(p_z.dtype.element_ty), mask=mask)
            b_wide = tl.where(mask, b_parts[i_j], 0)
            b_sum += b_wide
            b_squares += b_wide * b_wide
    p_block = p_sums + (i_k * blocks + i_b) * outputs + o_o
    tl.store(p_block, tl.sum(b_sum, axis=0), mask=mask_o)
    tl.store(p_block + tl.cast(sum_rows, tl.int64) * blocks * outputs, tl.sum(b_squares, axis=0), mask=mask_o)


@triton.jit(do_not_specialize=["branches", "rows"])
def error_kernel(
    p_error, p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places,
    p_a, p_b, p_d, p_feedback,
    branches, rows, inputs, outputs,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute the error below the pointwise feedback: the gradient of z_k times B_k, [rows, inputs]."""
    i_k, i_row = (tl.program_id(0) % branches).to(tl.int64), tl.program_id(0) // branches * BLOCK_R
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_r, mask_c = (o_r < rows - i_row)[:, None], (o_c < inputs)[None, :]
    i_first, size = i_row.to(tl.int64) * outputs, tl.cast(rows, tl.int64) * outputs
    b_error = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for i_o in range(0, outputs, BLOCK_O):
        o_o = i_o + tl.arange(0, BLOCK_O)
        mask_o = o_o < outputs
        p_grad, p_map, b_a, b_b, b_d = prologue(
            p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a, p_b,
            p_d, i_k, size, o_o, mask_o, outputs,
        )  # fmt: skip
        o_z = (o_r * outputs)[:, None] + o_o[None, :]
        b_delta = delta(p_grad + i_first, p_map + i_first, o_z, mask_r & mask_o[None, :], b_a, b_b, b_d)
        p_block = p_feedback + i_k * outputs * inputs + (o_o * inputs)[:, None] + o_c[None, :]
        b_feedback = tl.load(p_block, mask=mask_o[:, None] & mask_c, other=0).to(b_delta.dtype)
        b_error = tl.dot(b_delta, b_feedback, b_error, input_precision=PRECISION)
    p_block = p_error + (i_k * rows + i_row) * inputs + (o_r * inputs)[:, None] + o_c[None, :]
    tl.store(p_block, b_error.to(p_error.dtype.element_ty), mask=mask_r & mask_c)


@triton.jit(do_not_specialize=[*SIZES, "own_images", "weights"])
def weight_gradient_kernel(
    p_depthwise_grad, p_pointwise_grad, p_error,
    p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a, p_b, p_d,
    p_x, p_depthwise, p_scale, p_shift, p_branches, images, inputs, outputs, height, width, out_height, out_width,
    own_images, weights,
    PRECISION: tl.constexpr, STRIDE: tl.constexpr, AFFINE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Compute both weight gradients over the groups of this program, flat, in a row of ``weights`` numbers.

    The last dimension of the grid counts blocks of input channels, and within each the rows of taps and then blocks of
    output channels. For these the depthwise output is recomputed; the products are summed in ``SPLIT`` parts of the
    positions, so that all threads have some.
    """
    i_k, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    kernel, dilation, i_d = _branch(p_branches, i_k)
    out_blocks = tl.cdiv(outputs, BLOCK_O)
    i_row, i_o = tl.program_id(2) % (ROWS + out_blocks), tl.program_id(2) % (ROWS + out_blocks) - ROWS
    o_c = tl.program_id(2) // (ROWS + out_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < inputs
    b_scale, b_shift = _affine(p_scale, p_shift, i_k, o_c, inputs, AFFINE)
    columns = columns_of(out_width)
    i_first, o_n, o_h, o_column = groups(tl.program_id(1) * BLOCK_G, out_height, columns, BLOCK_G)
    o_w = first_position(o_column, dilation)
    p_images, image = p_x + i_k * own_images * height * width * inputs, tl.cast(height, tl.int64) * width * inputs
    step = tl.num_programs(1) * BLOCK_G // (out_height * columns)
    if i_row < ROWS:
        p_errors = p_error + i_k * images * out_height * out_width * inputs
        p_tap_grad = p_depthwise_grad + i_p * weights + i_d
        if kernel == 3:
            if i_row < 3:
                _tap_gradients(
                    p_tap_grad, p_images, p_errors, o_n, o_h, o_w, i_first, images, step, height, width, out_height,
                    out_width, dilation, o_c, inputs, b_scale, b_shift, i_row, 3, STRIDE, AFFINE,
                )  # fmt: skip
        else:
            _tap_gradients(
                p_tap_grad, p_images, p_errors, o_n, o_h, o_w, i_first, images, step, height, width, out_height,
                out_width, dilation, o_c, inputs, b_scale, b_shift, i_row, 5, STRIDE, AFFINE,
            )  # fmt: skip
    else:
        o_o = i_o * BLOCK_O + tl.arange(0, BLOCK_O)
        mask_o = o_o < outputs
        size = tl.cast(out_height, tl.int64) * out_width * outputs
        p_grad, p_map, b_a, b_b, b_d = prologue(
            p_maps0, p_maps1, p_maps2, p_maps3, p_maps4, p_maps5, p_maps6, p_maps7, p_places, p_a, p_b,
            p_d, i_k, images * size, o_o, mask_o, outputs,
        )  # fmt: skip
        o_z = (((o_n * out_height + o_h) * out_width + o_w) * outputs)[:, None] + o_o[None, :]
        b_pointwise = tl.zeros((SPLIT, BLOCK_O, BLOCK_C), dtype=tl.float32)
        for i_n in range(i_first, images, step):
            is_group = o_n < images - i_n
            if kernel == 3:
                b_middle = taps(
                    p_images + i_n * image, p_depthwise + i_d, o_n, o_h * STRIDE, o_w * STRIDE, is_group, height, width,
                    dilation, o_c, inputs, b_scale, b_shift, 3, STRIDE, AFFINE,
                )  # fmt: skip
            else:
                b_middle = taps(
                    p_images + i_n * image, p_depthwise + i_d, o_n, o_h * STRIDE, o_w * STRIDE, is_group, height, width,
                    dilation, o_c, inputs, b_scale, b_shift, 5, STRIDE, AFFINE,
                )  # fmt: skip
            b_deltas = ()
            for i_j in tl.static_range(GROUP):
                is_inside = (is_group & (o_w + i_j * dilation < out_width))[:, None]
                o_j = i_n * size + i_j * dilation * outputs
                b_delta = delta(p_grad + o_j, p_map + o_j, o_z, is_inside & mask_o[None, :], b_a, b_b, b_d)
                b_deltas = b_deltas + (tl.where(is_inside, b_delta, 0),)
            b_delta, b_middle = join(b_deltas), b_middle.to(p_maps0.dtype.element_ty)
            if SPLIT == 1:
                b_sum = tl.dot(tl.trans(b_delta), b_middle, input_precision=PRECISION)
                b_pointwise += tl.reshape(b_sum, (1, BLOCK_O, BLOCK_C))
            else:
                b_delta = tl.reshape(b_delta, (SPLIT, BLOCK_G * GROUP // SPLIT, BLOCK_O))
                b_middle = tl.reshape(b_middle, (SPLIT, BLOCK_G * GROUP // SPLIT, BLOCK_C))
                b_delta = tl.permute(b_delta, (0, 2, 1))
                b_pointwise = tl.dot(b_delta, b_middle, b_pointwise, input_precision=PRECISION)
        p_block = p_pointwise_grad + i_p * weights + i_k * outputs * inputs
        p_block += (o_o * inputs)[:, None] + o_c[None, :]
        tl.store(p_block, tl.sum(b_pointwise, axis=0), mask=mask_o[:, None] & mask_c[None, :])


@triton.jit
def _tap_gradients(
    p_grad, p_images, p_errors, o_n, o_h, o_w, i_first, images, step, height, width, out_height, out_width, dilation,
    o_c, inputs, b_scale, b_shift, i_row, KERNEL: tl.constexpr, STRIDE: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a row of taps over every ``step``-th image."""
    mask_c = o_c < inputs
    o_error = (((o_n * out_height + o_h) * out_width + o_w) * inputs)[:, None] + o_c[None, :]
    b_taps = zeros(KERNEL, o_h.shape[0], o_c.shape[0])
    for i_n in range(i_first, images, step):
        is_group = o_n < images - i_n
        p_block, p_image = p_errors + tl.cast(i_n, tl.int64) * out_height * out_width * inputs, p_images
        p_image += tl.cast(i_n, tl.int64) * height * width * inputs
        b_errors = ()
        for i_j in tl.static_range(GROUP):
            mask = (is_group & (o_w + i_j * dilation < out_width))[:, None] & mask_c[None, :]
            b_error = tl.load(p_block + o_error + i_j * dilation * inputs, mask=mask, other=0)
            b_errors = b_errors + (b_error.to(tl.float32),)
        b_taps = add_tap_gradients(
            b_taps, b_errors, p_image, o_n, o_h * STRIDE, o_w * STRIDE, is_group, height, width, dilation, o_c, inputs,
            b_scale, b_shift, i_row, KERNEL, STRIDE, AFFINE,
        )  # fmt: skip
    p_block = p_grad + o_c * (KERNEL * KERNEL) + i_row * KERNEL
    for i_w in tl.static_range(KERNEL):
        tl.store(p_block + i_w, tl.sum(b_taps[i_w], axis=0), mask=mask_c)


@triton.jit(do_not_specialize=["count", *SIZES, "shared"])
def input_kernel(
    p_grad, p_sums, p_x, p_error, p_feedback, p_scale, p_shift, p_branches,
    count, images, inputs, height, width, out_height, out_width, shared,
    STRIDE: tl.constexpr, AFFINE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of ReLU's input, for ``count`` inputs read by ``shared`` branches each.

    δ_in[n, h, w] = Σ error[n, (h + p - d·k_h)/s, (w + p - d·k_w)/s] B[k_h, k_w] for integer quotients. For each block
    of groups, also Σ of the gradient and of its product with ReLU's input.
    """
    i_x, i_b = (tl.program_id(0) % count).to(tl.int64), tl.program_id(0) // count
    columns, blocks = columns_of(width) if STRIDE == 1 else out_width, tl.num_programs(0) // count
    i_first, o_n, o_up_h, o_column = groups(i_b * BLOCK_G, out_height, columns, BLOCK_G)
    o_up_w = o_column * GROUP if STRIDE == 1 else o_column
    o_h, o_w = o_up_h * STRIDE, o_up_w * STRIDE
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < inputs
    o_x = (((o_n * height + o_h) * width + o_w) * inputs)[:, None] + o_c[None, :]
    b_sum, b_products = tl.zeros(o_x.shape, dtype=tl.float32), tl.zeros(o_x.shape, dtype=tl.float32)
    for i_n in range(i_first, images, blocks * BLOCK_G // (out_height * columns)):
        is_group = o_n < images - i_n
        i_image = (i_x * images + i_n) * height * width * inputs
        b_grad = zeros(GROUP, BLOCK_G, BLOCK_C)
        for i_k in range(i_x * shared, (i_x + 1) * shared):
            kernel, dilation, i_d = _branch(p_branches, i_k)
            p_up, p_weight = p_error + (i_k * images + i_n) * out_height * out_width * inputs, p_feedback + i_d
            b_down = zeros(GROUP, BLOCK_G, BLOCK_C) if AFFINE else b_grad
            if kernel == 3:
                b_down = _gather(
                    b_down, p_up, p_weight, o_n, o_up_h, o_up_w, is_group, out_height, out_width, dilation, o_c,
                    inputs, 3, STRIDE,
                )  # fmt: skip
            else:
                b_down = _gather(
                    b_down, p_up, p_weight, o_n, o_up_h, o_up_w, is_group, out_height, out_width, dilation, o_c,
                    inputs, 5, STRIDE,
                )  # fmt: skip
            if AFFINE:
                b_scale, b_shift = _affine(p_scale, p_shift, i_k, o_c, inputs, AFFINE)
                b_new = ()
                for i_j in tl.static_range(GROUP):
                    mask, o_j = _position(i_j, is_group, o_h, o_w, height, width, STRIDE)
                    p_block = p_x + i_image + o_x + o_j * inputs
                    b_x = tl.load(p_block, mask=mask[:, None] & mask_c[None, :], other=0).to(tl.float32)
                    b_seen = b_x * b_scale[None, :] + b_shift[None, :]
                    b_new = b_new + (b_grad[i_j] + tl.where(b_seen > 0, b_down[i_j], 0),)
                b_grad = b_new
            else:
                b_grad = b_down
        b_scale, b_shift = _affine(p_scale, p_shift, i_x * shared, o_c, inputs, AFFINE)
        for i_j in tl.static_range(GROUP):
            mask_j, o_j = _position(i_j, is_group, o_h, o_w, height, width, STRIDE)
            mask = mask_j[:, None] & mask_c[None, :]
            b_x = tl.load(p_x + i_image + o_x + o_j * inputs, mask=mask, other=0).to(tl.float32)
            b_seen = b_x * b_scale[None, :] + b_shift[None, :] if AFFINE else b_x
            b_own = b_grad[i_j] if AFFINE else tl.where(b_seen > 0, b_grad[i_j], 0)
            b_own = b_own.to(p_grad.dtype.element_ty)
            tl.store(p_grad + i_image + o_x + o_j * inputs, b_own, mask=mask)
            b_wide = tl.where(mask, b_own.to(tl.float32), 0)
            b_sum += b_wide
            b_products += b_wide * b_seen
    p_block = p_sums + (i_x * blocks + i_b) * inputs + o_c
    tl.store(p_block, tl.sum(b_sum, axis=0), mask=mask_c)
    tl.store(p_block + tl.cast(count, tl.int64) * blocks * inputs, tl.sum(b_products, axis=0), mask=mask_c)


@triton.jit
def _position(i_j, is_group, o_h, o_w, height, width, STRIDE: tl.constexpr):
    """Locate position ``i_j`` of the groups: whether it exists, and its distance from the first."""
    if STRIDE == 1:
        return is_group & (o_w + i_j < width), i_j
    return is_group & (o_h + i_j // 2 < height) & (o_w + i_j % 2 < width), i_j // 2 * width + i_j % 2


@triton.jit
def _gather(
    b_down, p_up, p_weight, o_n, o_h, o_w, is_group, height, width, dilation, o_c, channels,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    if dilation == 1:
        if STRIDE == 1:
            b_out = gather(b_down, p_up, p_weight, o_n, o_h, o_w, is_group, height, width, o_c, channels, KERNEL, 1)
        else:
            b_out = gather_strided(
                b_down, p_up, p_weight, o_n, o_h, o_w, is_group, height, width, o_c, channels, KERNEL, 1
            )
    else:
        if STRIDE == 1:
            b_out = gather(b_down, p_up, p_weight, o_n, o_h, o_w, is_group, height, width, o_c, channels, KERNEL, 2)
        else:
            b_out = gather_strided(
                b_down, p_up, p_weight, o_n, o_h, o_w, is_group, height, width, o_c, channels, KERNEL, 2
            )
    return b_out


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    for dtype in DTYPES:
        kinds = [*product(STRIDES, (False, True))]
        for channels, precision in product(WIDTHS, precisions(dtype)):
            yield Configuration(error_kernel, dtype, (), error_options(channels, precision))
            for stride, affine in kinds:
                yield Configuration(stage_kernel, dtype, (), stage_options(channels, precision, stride, affine))
                options = weight_options(channels, dtype, precision, stride, affine)
                yield Configuration(weight_gradient_kernel, dtype, (), options)
        for stride, affine in kinds:
            yield Configuration(input_kernel, dtype, (), input_options(dtype, stride, affine))


def _width(channels: int) -> int:
    return next((width for width in WIDTHS if channels <= width), WIDTHS[-1])


def error_options(channels: int, precision: Products) -> dict[str, Any]:
    """Return the options for the larger of the two numbers of channels."""
    width = _width(channels)
    blocks = {"BLOCK_R": 64 if width == 64 else 128, "BLOCK_C": width, "BLOCK_O": min(width, 32)}
    return {"PRECISION": precision, **blocks, "num_warps": 4, "num_stages": 1}


def stage_options(channels: int, precision: Products, stride: int, affine: bool) -> dict[str, Any]:
    """Return the options for the larger of the two numbers of channels."""
    width = _width(channels)
    blocks = {"BLOCK_G": {16: 64, 32: 16, 64: 16 // stride}[width], "BLOCK_C": min(width, 32), "BLOCK_O": width}
    kind = {"PRECISION": precision, "STRIDE": stride, "AFFINE": affine}
    return {**kind, **blocks, "num_warps": 8, **REGISTERS}


def weight_options(channels: int, dtype: torch.dtype, precision: Products, stride: int, affine: bool) -> dict[str, Any]:
    """Return the options for the larger of the two numbers of channels."""
    width = _width(channels)
    exact = dtype == torch.float32 and precision == "ieee"  # without tensor cores
    blocks = {"BLOCK_G": {16: 64, 32: 32, 64: 32 // stride}[width], "BLOCK_C": min(width, 32), "BLOCK_O": width}
    blocks["SPLIT"] = (8 if width == 16 else 4) if exact else 1
    kind = {"PRECISION": precision, "STRIDE": stride, "AFFINE": affine}
    return {**kind, **blocks, "num_warps": 8, **REGISTERS}


def input_options(dtype: torch.dtype, stride: int, affine: bool) -> dict[str, Any]:
    blocks = {"BLOCK_G": 32 // stride, "BLOCK_C": 16}
    # On sm_90 this one spilled; float32 already uses as many registers.
    registers = REGISTERS if dtype.itemsize == 2 and stride == 1 and affine else {"num_stages": 1}
    return {"STRIDE": stride, "AFFINE": affine, **blocks, "num_warps": 4, **registers}
