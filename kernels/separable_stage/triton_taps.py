"""Depthwise convolutions of groups of positions, and their transposes, for the Triton kernels of this folder.

Kernel size and stride are constants and the columns of a row of taps are unrolled: each column of the input is loaded,
normalised and rectified once, and serves all positions of its group that read it. The rows of taps are a loop. A group
has GROUP positions in a row that are ``dilation`` apart, so that neighbouring taps of one position and the same taps of
neighbouring positions read the same columns. In the transpose they are adjacent or, where the stride is 2, a square of
two by two: which taps reach an even or an odd position is then a constant.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. Blocks are [groups, channels], one for each position of
a group in a tuple.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Positions of a group.
GROUP = tl.constexpr(4)


@triton.jit
def groups(i_first, height, columns, BLOCK_G: tl.constexpr):
    """Locate the groups of a block: the first image; and each group's image, relative to it, row and column."""
    o_g = (i_first + tl.arange(0, BLOCK_G)).to(tl.uint32)  # divisions without a sign are shorter
    o_line = o_g // tl.cast(columns, tl.uint32)
    o_image = o_line // tl.cast(height, tl.uint32)
    i_n = i_first // (height * columns)
    o_column = (o_g - o_line * tl.cast(columns, tl.uint32)).to(tl.int32)
    o_h = (o_line - o_image * tl.cast(height, tl.uint32)).to(tl.int32)
    return i_n, o_image.to(tl.int32) - i_n, o_h, o_column


@triton.jit
def columns_of(width):
    """Count the groups of a row: an even number, so that pairs of groups cover it at a dilation of 2 as well."""
    return tl.cdiv(width, 2 * GROUP) * 2


@triton.jit
def first_position(o_column, dilation):
    """Compute the column of the first position of a group; the others follow at a distance of ``dilation``, 1 or 2."""
    return tl.where(dilation == 1, o_column * GROUP, o_column // 2 * (2 * GROUP) + o_column % 2)


@triton.jit
def _column(p_x, is_row, o_w, width, mask_c, b_scale, b_shift, AFFINE: tl.constexpr):
    """Load a column of ReLU's output, [groups, channels]; zero in the padding, and NaN where the input is NaN."""
    is_inside = (is_row & (o_w >= 0) & (o_w < width))[:, None]
    b_x = tl.load(p_x, mask=is_inside & mask_c[None, :], other=0).to(tl.float32)
    if AFFINE:
        b_x = tl.where(is_inside, b_x * b_scale[None, :] + b_shift[None, :], 0)
    return tl.maximum(b_x, 0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _row_of_weights(p_weight, o_c, mask_c, i_h, KERNEL: tl.constexpr):
    b_weight, p_first = (), p_weight + i_h * KERNEL + o_c * (KERNEL * KERNEL)
    for i_w in tl.static_range(KERNEL):
        b_weight = b_weight + (tl.load(p_first + i_w, mask=mask_c, other=0).to(tl.float32),)
    return b_weight


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Make a tuple of blocks of zeros."""
    b_zeros = ()
    for _ in tl.static_range(COUNT):
        b_zeros = b_zeros + (tl.zeros((ROWS, COLUMNS), dtype=tl.float32),)
    return b_zeros


@triton.jit
def _row_of_taps(p_image, o_n, o_h, o_w, is_group, height, width, dilation, o_c, channels, i_h, KERNEL: tl.constexpr):
    """Locate the first column that the row ``i_h`` of taps reads: pointers, whether the row exists, and the column."""
    o_row, o_first = o_h + (i_h - KERNEL // 2) * dilation, o_w - KERNEL // 2 * dilation
    o_x = (((o_n * height + o_row) * width + o_first) * channels)[:, None] + o_c[None, :]
    return p_image + o_x, is_group & (o_row >= 0) & (o_row < height), o_first


@triton.jit
def taps(
    p_image, p_weight, o_n, o_h, o_w, is_group, height, width, dilation, o_c, channels, b_scale, b_shift,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """Compute the depthwise convolution of ReLU of the input, [groups · GROUP, channels].

    ``o_h`` and ``o_w`` are the input's row and column at a group's first position.
    """
    mask_c = o_c < channels
    b_out = zeros(GROUP, o_h.shape[0], o_c.shape[0])
    for i_h in range(KERNEL):
        p_row, is_row, o_first = _row_of_taps(
            p_image, o_n, o_h, o_w, is_group, height, width, dilation, o_c, channels, i_h, KERNEL
        )
        b_weight = _row_of_weights(p_weight, o_c, mask_c, i_h, KERNEL)
        for i_column in tl.static_range((GROUP - 1) * STRIDE + KERNEL):
            p_x, o_column = p_row + i_column * dilation * channels, o_first + i_column * dilation
            b_x = _column(p_x, is_row, o_column, width, mask_c, b_scale, b_shift, AFFINE)
            b_new = ()
            for i_j in tl.static_range(GROUP):
                b_one = b_out[i_j]
                if i_column >= i_j * STRIDE and i_column - i_j * STRIDE < KERNEL:
                    b_one += b_x * b_weight[i_column - i_j * STRIDE][None, :]
                b_new = b_new + (b_one,)
            b_out = b_new
    return join(b_out)


@triton.jit
def add_tap_gradients(
    b_taps, b_errors, p_image, o_n, o_h, o_w, is_group, height, width, dilation, o_c, channels, b_scale, b_shift, i_h,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """Add the products of error and ReLU of the input to the accumulator of each tap in the row ``i_h``."""
    mask_c = o_c < channels
    p_row, is_row, o_first = _row_of_taps(
        p_image, o_n, o_h, o_w, is_group, height, width, dilation, o_c, channels, i_h, KERNEL
    )
    for i_column in tl.static_range((GROUP - 1) * STRIDE + KERNEL):
        p_x, o_column = p_row + i_column * dilation * channels, o_first + i_column * dilation
        b_x = _column(p_x, is_row, o_column, width, mask_c, b_scale, b_shift, AFFINE)
        b_new = ()
        for i_w in tl.static_range(KERNEL):
            b_tap = b_taps[i_w]
            for i_j in tl.static_range(GROUP):
                if i_column - i_j * STRIDE == i_w:
                    b_tap += b_x * b_errors[i_j]
            b_new = b_new + (b_tap,)
        b_taps = b_new
    return b_taps


@triton.jit
def gather(
    b_down, p_image, p_weight, o_n, o_h, o_w, is_group, height, width, o_c, channels,
    KERNEL: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """Add the transposed depthwise convolution of an error at GROUP adjacent positions, the stride being 1."""
    REACH: tl.constexpr = KERNEL // 2 * DILATION
    mask_c = o_c < channels
    for i_h in range(KERNEL):
        o_row = o_h + (KERNEL // 2 - i_h) * DILATION
        is_row = is_group & (o_row >= 0) & (o_row < height)
        p_row = p_image + ((((o_n * height + o_row) * width + o_w - REACH) * channels)[:, None] + o_c[None, :])
        b_weight = _row_of_weights(p_weight, o_c, mask_c, i_h, KERNEL)
        for i_column in tl.static_range(GROUP + 2 * REACH):
            o_column = o_w + (i_column - REACH)
            mask = (is_row & (o_column >= 0) & (o_column < width))[:, None] & mask_c[None, :]
            b_up = tl.load(p_row + i_column * channels, mask=mask, other=0).to(tl.float32)
            b_new = ()
            for i_j in tl.static_range(GROUP):
                b_one = b_down[i_j]
                if i_column >= i_j and i_column <= i_j + 2 * REACH and (2 * REACH + i_j - i_column) % DILATION == 0:
                    b_one += b_up * b_weight[(2 * REACH + i_j - i_column) // DILATION][None, :]
                b_new = b_new + (b_one,)
            b_down = b_new
    return b_down


@triton.constexpr_function
def _reaches(offset, reach, dilation):
    """Whether a tap lies at this offset."""
    return -reach <= offset <= reach and (reach + offset) % dilation == 0


@triton.jit
def gather_strided(
    b_down, p_image, p_weight, o_n, o_h, o_w, is_group, height, width, o_c, channels,
    KERNEL: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """Add the same at a square of 2 × 2 positions, the stride being 2; rows and columns count the squares.

    Position 2a + j receives from a + u through tap p + (j - 2u)/d, if that is a whole number.
    """
    REACH: tl.constexpr = KERNEL // 2 * DILATION
    mask_c = o_c < channels
    for i_up in tl.static_range(-(REACH // 2), (REACH + 1) // 2 + 1):
        o_row = o_h + i_up
        is_row = is_group & (o_row >= 0) & (o_row < height)
        for i_left in tl.static_range(-(REACH // 2), (REACH + 1) // 2 + 1):
            o_column = o_w + i_left
            mask = (is_row & (o_column >= 0) & (o_column < width))[:, None] & mask_c[None, :]
            o_up = (((o_n * height + o_row) * width + o_column) * channels)[:, None] + o_c[None, :]
            b_up = tl.load(p_image + o_up, mask=mask, other=0).to(tl.float32)
            b_new = ()
            for i_j in tl.static_range(GROUP):
                b_one = b_down[i_j]
                if _reaches(i_j // 2 - 2 * i_up, REACH, DILATION) and _reaches(i_j % 2 - 2 * i_left, REACH, DILATION):
                    i_tap_h = (REACH + i_j // 2 - 2 * i_up) // DILATION
                    o_weight = o_c * (KERNEL * KERNEL) + i_tap_h * KERNEL + (REACH + i_j % 2 - 2 * i_left) // DILATION
                    b_weight = tl.load(p_weight + o_weight, mask=mask_c, other=0)
                    b_one += b_up * b_weight.to(tl.float32)[None, :]
                b_new = b_new + (b_one,)
            b_down = b_new
    return b_down


@triton.jit
def join(b_parts):
    """Join GROUP blocks [groups, C] into one, [groups · GROUP, C], in which the positions of a group are adjacent."""
    b_low, b_high = tl.join(b_parts[0], b_parts[1]), tl.join(b_parts[2], b_parts[3])
    b_all = tl.permute(tl.join(b_low, b_high), (0, 3, 2, 1))
    return tl.reshape(b_all, (b_parts[0].shape[0] * GROUP, b_parts[0].shape[1]))


@triton.jit
def split(b_all):
    """Undo :func:`join`."""
    b_all = tl.reshape(b_all, (b_all.shape[0] // GROUP, 2, 2, b_all.shape[1]))
    b_low, b_high = tl.split(tl.permute(b_all, (0, 3, 2, 1)))
    b_0, b_1 = tl.split(b_low)
    b_2, b_3 = tl.split(b_high)
    return b_0, b_1, b_2, b_3
