"""Triton kernels of separable stages, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. A row is a position of one image, (n, h, w). Every
program writes its sums over rows to a separate location, and the launcher adds them, so results are deterministic.
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
from ..triton_blocks import block_rows, inside, located, store_sums

#: The dtypes of the kernels. Sums are float32 or wider; the factors of matrix products have the activations' dtype.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STRIDES = (1, 2)
#: Taps whose sums the weight kernel accumulates: those of a 5×5 kernel.
TAPS = 32
#: Maximum channels of a block of a matrix product; blocks are as small as possible. No kernel spills registers on
#: sm_80, sm_90 and sm_100.
WIDTHS = (16, 32)
ROWS = 64
#: Channels of a block of the transposed depthwise convolution.
INPUT_WIDTH = 16


@triton.jit
def _branch(p_branches, i_k):
    """Load kernel, dilation and the offset of the depthwise weights."""
    p_row = p_branches + i_k * 3
    return tl.load(p_row).to(tl.int32), tl.load(p_row + 1).to(tl.int32), tl.load(p_row + 2)


@triton.jit
def _affine(p_scale, p_shift, i_k, o_c, channels):
    o_first, mask = i_k * channels + o_c, o_c < channels
    return tl.load(p_scale + o_first, mask=mask, other=0), tl.load(p_shift + o_first, mask=mask, other=0)


@triton.jit
def _relu(p_image, o_n, o_h, o_w, height, width, channels, o_c, mask, b_scale, b_shift):
    """Load ReLU of the input at these images, rows and columns, [rows, channels]; zero in the padding."""
    mask = mask & inside(o_h, o_w, height, width)[:, None]
    o_x = (((o_n * height + o_h) * width + o_w) * channels)[:, None] + o_c[None, :]
    b_seen = tl.load(p_image + o_x, mask=mask, other=0).to(tl.float32) * b_scale[None, :] + b_shift[None, :]
    return tl.where(mask & ~(b_seen < 0), b_seen, 0)  # propagates NaN


@triton.jit
def _delta(
    p_grads0, p_grads1, p_grads2, p_grads3, p_places, p_z, p_a, p_b, p_d, i_k, i_row, o_r, rows, o_o, outputs
):  # fmt: skip
    """Compute the gradient of z_k, a·g + b·z + d, [rows, outputs]; d in rows out of range."""
    mask_o = o_o < outputs
    mask = (o_r < rows - i_row)[:, None] & mask_o[None, :]
    o_z, o_a = (o_r * outputs)[:, None] + o_o[None, :], i_k * outputs + o_o
    size = tl.cast(rows, tl.int64) * outputs
    p_grad, _ = located(p_grads0, p_grads1, p_grads2, p_grads3, p_places + 2 * i_k, size)
    b_grad = tl.load(p_grad + i_row.to(tl.int64) * outputs + o_z, mask=mask, other=0).to(tl.float32)
    b_z = tl.load(p_z + (i_k * rows + i_row) * outputs + o_z, mask=mask, other=0).to(tl.float32)
    b_a = tl.load(p_a + o_a, mask=mask_o, other=0)
    b_b = tl.load(p_b + o_a, mask=mask_o, other=0)
    b_d = tl.load(p_d + o_a, mask=mask_o, other=0)
    return (b_a[None, :] * b_grad + b_b[None, :] * b_z + b_d[None, :]).to(p_z.dtype.element_ty)


@triton.jit(do_not_specialize=["stride", "own_images", "sum_rows"])
def stage_kernel(
    p_z, p_sums, p_x, p_depthwise, p_pointwise, p_scale, p_shift, p_branches,
    branches, rows, inputs, outputs, height, width, out_height, out_width, stride, own_images, sum_rows,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute z_k, and Σ z and Σ z² of each block of rows. ``own_images`` is 0 if all branches share an input.

    The sums are rows of a table, [2, sum_rows, blocks, outputs].

    Blocks start at 64-bit addresses; offsets inside a block are 32-bit, which halves the registers.
    """
    i_k, i_r = (tl.program_id(0) % branches).to(tl.int64), tl.program_id(0) // branches
    kernel, dilation, i_d = _branch(p_branches, i_k)
    mask_r, i_n, o_n, o_h, o_w = block_rows(i_r * BLOCK_R, rows, out_height, out_width, BLOCK_R)
    p_image = p_x + (i_k * own_images + i_n) * height * width * inputs
    o_h, o_w = o_h * stride - kernel // 2 * dilation, o_w * stride - kernel // 2 * dilation
    o_r, o_o = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_o = o_o < outputs
    b_z = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for i_c in range(0, inputs, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        mask_c = o_c < inputs
        mask = mask_r[:, None] & mask_c[None, :]
        b_scale, b_shift = _affine(p_scale, p_shift, i_k, o_c, inputs)
        b_middle = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
        for i_tap in range(kernel * kernel):
            o_tap_h, o_tap_w = o_h + i_tap // kernel * dilation, o_w + i_tap % kernel * dilation
            b_relu = _relu(p_image, o_n, o_tap_h, o_tap_w, height, width, inputs, o_c, mask, b_scale, b_shift)
            b_weight = tl.load(p_depthwise + i_d + o_c * kernel * kernel + i_tap, mask=mask_c, other=0)
            b_middle += b_relu * b_weight.to(tl.float32)[None, :]
        p_block = p_pointwise + i_k * outputs * inputs + (o_o * inputs)[None, :] + o_c[:, None]
        b_weight = tl.load(p_block, mask=mask_c[:, None] & mask_o[None, :], other=0)
        b_z = tl.dot(b_middle.to(b_weight.dtype), b_weight, b_z, input_precision=PRECISION)
    b_z = b_z.to(p_z.dtype.element_ty)
    p_block = p_z + (i_k * rows + i_r * BLOCK_R) * outputs + (o_r * outputs)[:, None] + o_o[None, :]
    tl.store(p_block, b_z, mask=mask_r[:, None] & mask_o[None, :])
    b_wide = b_z.to(tl.float32)
    store_sums(p_sums, b_wide, b_wide, i_k, sum_rows, i_r, tl.cdiv(rows, BLOCK_R), o_o, outputs)


@triton.jit
def error_kernel(
    p_error, p_grads0, p_grads1, p_grads2, p_grads3, p_places, p_z, p_a, p_b, p_d, p_feedback,
    branches, rows, inputs, outputs,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the error below the pointwise feedback: the gradient of z_k times B_k, [rows, inputs]."""
    i_k, i_row = (tl.program_id(0) % branches).to(tl.int64), tl.program_id(0) // branches * BLOCK_R
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = (o_c < inputs)[None, :]
    b_error = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for i_o in range(0, outputs, BLOCK_C):
        o_o = i_o + tl.arange(0, BLOCK_C)
        b_delta = _delta(
            p_grads0, p_grads1, p_grads2, p_grads3, p_places, p_z, p_a, p_b, p_d, i_k, i_row, o_r, rows, o_o, outputs
        )
        p_block = p_feedback + i_k * outputs * inputs + (o_o * inputs)[:, None] + o_c[None, :]
        b_feedback = tl.load(p_block, mask=(o_o < outputs)[:, None] & mask_c, other=0)
        b_error = tl.dot(b_delta, b_feedback, b_error, input_precision=PRECISION)
    p_block = p_error + (i_k * rows + i_row) * inputs + (o_r * inputs)[:, None] + o_c[None, :]
    tl.store(p_block, b_error.to(p_error.dtype.element_ty), mask=(o_r < rows - i_row)[:, None] & mask_c)


@triton.jit(do_not_specialize=["stride", "own_images", "weights"])
def weight_gradient_kernel(
    p_depthwise_grad, p_pointwise_grad, p_error, p_grads0, p_grads1, p_grads2, p_grads3, p_places, p_z, p_a, p_b, p_d,
    p_x, p_depthwise, p_scale, p_shift, p_branches, rows, inputs, outputs, height, width, out_height, out_width,
    stride, own_images, weights,
    PRECISION: tl.constexpr, TAPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute both weight gradients over the rows of this program, flat, in a row of ``weights`` numbers.

    The depthwise output is recomputed, and the gradients of the depthwise weights along with it. The last dimension of
    the grid counts pairs of output and input blocks.
    """
    i_k, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    kernel, dilation, i_d = _branch(p_branches, i_k)
    blocks = tl.cdiv(outputs, BLOCK_C)
    i_o = tl.program_id(2) % blocks
    o_o = i_o * BLOCK_C + tl.arange(0, BLOCK_C)
    o_c = tl.program_id(2) // blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    o_r, o_taps = tl.arange(0, BLOCK_R), tl.arange(0, TAPS)
    mask_c = o_c < inputs
    b_scale, b_shift = _affine(p_scale, p_shift, i_k, o_c, inputs)
    b_taps = tl.zeros((TAPS, BLOCK_C), dtype=tl.float32)
    b_pointwise = tl.zeros((BLOCK_C, BLOCK_C), dtype=tl.float32)
    for i_r in range(tl.program_id(1), tl.cdiv(rows, BLOCK_R), tl.num_programs(1)):
        i_row = i_r * BLOCK_R
        mask_r, i_n, o_n, o_h, o_w = block_rows(i_row, rows, out_height, out_width, BLOCK_R)
        mask = mask_r[:, None] & mask_c[None, :]
        p_image = p_x + (i_k * own_images + i_n) * height * width * inputs
        o_h, o_w = o_h * stride - kernel // 2 * dilation, o_w * stride - kernel // 2 * dilation
        p_block = p_error + (i_k * rows + i_row) * inputs + (o_r * inputs)[:, None] + o_c[None, :]
        b_error = tl.load(p_block, mask=mask, other=0).to(tl.float32)
        b_middle = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
        for i_tap in range(kernel * kernel):
            o_tap_h, o_tap_w = o_h + i_tap // kernel * dilation, o_w + i_tap % kernel * dilation
            b_relu = _relu(p_image, o_n, o_tap_h, o_tap_w, height, width, inputs, o_c, mask, b_scale, b_shift)
            b_weight = tl.load(p_depthwise + i_d + o_c * kernel * kernel + i_tap, mask=mask_c, other=0)
            b_middle += b_relu * b_weight.to(tl.float32)[None, :]
            b_taps += tl.where((o_taps == i_tap)[:, None], tl.sum(b_error * b_relu, axis=0)[None, :], 0)
        b_delta = _delta(
            p_grads0, p_grads1, p_grads2, p_grads3, p_places, p_z, p_a, p_b, p_d, i_k, i_row, o_r, rows, o_o, outputs
        )
        b_pointwise = tl.dot(tl.trans(b_delta), b_middle.to(b_delta.dtype), b_pointwise, input_precision=PRECISION)
    p_block = p_depthwise_grad + i_p * weights + i_d + (o_c * kernel * kernel)[None, :] + o_taps[:, None]
    tl.store(p_block, b_taps, mask=(o_taps < kernel * kernel)[:, None] & (mask_c & (i_o == 0))[None, :])
    p_block = p_pointwise_grad + i_p * weights + i_k * outputs * inputs
    p_block += (o_o * inputs)[:, None] + o_c[None, :]
    tl.store(p_block, b_pointwise, mask=(o_o < outputs)[:, None] & mask_c[None, :])


@triton.jit(do_not_specialize=["shared"])
def input_kernel(
    p_grad, p_sums, p_x, p_error, p_feedback, p_scale, p_shift, p_branches,
    count, rows, inputs, height, width, out_height, out_width, shared,
    STRIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of ReLU's input, for ``count`` inputs read by ``shared`` branches each.

    δ_in[n, h, w] = Σ error[n, (h + p - d·k_h)/s, (w + p - d·k_w)/s] B[k_h, k_w] for integer quotients. For each block
    of rows, also Σ of the gradient and of its product with ReLU's input.
    """
    i_x, i_r = (tl.program_id(0) % count).to(tl.int64), tl.program_id(0) // count
    mask_r, i_n, o_n, o_h, o_w = block_rows(i_r * BLOCK_R, rows, height, width, BLOCK_R)
    o_r, o_c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < inputs
    mask = mask_r[:, None] & mask_c[None, :]
    i_first, o_x = (i_x * rows + i_r * BLOCK_R) * inputs, (o_r * inputs)[:, None] + o_c[None, :]
    b_x = tl.load(p_x + i_first + o_x, mask=mask, other=0).to(tl.float32)
    b_grad, b_seen = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32), b_x
    for i_k in range(i_x * shared, (i_x + 1) * shared):
        kernel, dilation, i_d = _branch(p_branches, i_k)
        p_image = p_error + (i_k * (rows // (height * width)) + i_n) * out_height * out_width * inputs
        b_down = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
        for i_tap in range(kernel * kernel):
            o_from_h = o_h + (kernel // 2 - i_tap // kernel) * dilation
            o_from_w = o_w + (kernel // 2 - i_tap % kernel) * dilation
            o_up_h, o_up_w = o_from_h // STRIDE, o_from_w // STRIDE
            whole = (o_from_h % STRIDE == 0) & (o_from_w % STRIDE == 0)
            mask_up = whole & inside(o_up_h, o_up_w, out_height, out_width)
            o_error = (((o_n * out_height + o_up_h) * out_width + o_up_w) * inputs)[:, None] + o_c[None, :]
            b_error = tl.load(p_image + o_error, mask=mask & mask_up[:, None], other=0).to(tl.float32)
            b_feedback = tl.load(p_feedback + i_d + o_c * kernel * kernel + i_tap, mask=mask_c, other=0)
            b_down += b_error * b_feedback.to(tl.float32)[None, :]
        b_scale, b_shift = _affine(p_scale, p_shift, i_k, o_c, inputs)
        b_seen = b_x * b_scale[None, :] + b_shift[None, :]
        b_grad += tl.where(b_seen > 0, b_down, 0)
    b_grad = b_grad.to(p_grad.dtype.element_ty)
    tl.store(p_grad + i_first + o_x, b_grad, mask=mask)
    store_sums(p_sums, b_grad.to(tl.float32), b_seen, i_x, count, i_r, tl.cdiv(rows, BLOCK_R), o_c, inputs)


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    for dtype in DTYPES:
        for channels, precision in product(WIDTHS, precisions(dtype)):
            yield Configuration(stage_kernel, dtype, (), product_options(channels, precision))
            yield Configuration(error_kernel, dtype, (), product_options(channels, precision))
            yield Configuration(weight_gradient_kernel, dtype, (), weight_options(channels, precision))
        for stride in STRIDES:
            yield Configuration(input_kernel, dtype, (), input_options(stride))


def product_options(channels: int, precision: Products) -> dict[str, Any]:
    """Return the options for the larger of the two numbers of channels."""
    width = next((width for width in WIDTHS if channels <= width), WIDTHS[-1])
    return {"PRECISION": precision, "BLOCK_R": ROWS, "BLOCK_C": width, "num_warps": 4, "num_stages": 1}


def weight_options(channels: int, precision: Products) -> dict[str, Any]:
    options = product_options(channels, precision)
    # With more rows, TF32 takes more registers than there are, and so do narrow blocks in bfloat16.
    rows = ROWS if precision == "ieee" and options["BLOCK_C"] > WIDTHS[0] else ROWS // 2
    return {**options, "TAPS": TAPS, "BLOCK_R": rows, "num_warps": 8}


def input_options(stride: int) -> dict[str, Any]:
    return {"STRIDE": stride, "BLOCK_R": ROWS, "BLOCK_C": INPUT_WIDTH, "num_warps": 4, "num_stages": 1}
