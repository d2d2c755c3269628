"""Triton kernels of feedback weights, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index, s_ stride. ``up`` is δ_out, ``down`` δ_in.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from bionas_fast.choices import Products

from ..launching import Configuration, precisions
from .records import COMPUTED, SEGMENT_MODES

#: The dtypes of the kernels. Stored magnitudes may be float32 with a narrower weight, as under autocast.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: The codes of a segment's mode in the kernel.
_WEIGHT = tl.constexpr(SEGMENT_MODES.index("weight"))
_STORED = tl.constexpr(SEGMENT_MODES.index("stored"))
_SIGN = tl.constexpr(SEGMENT_MODES.index("sign"))
_STORED_SIGN = tl.constexpr(SEGMENT_MODES.index("stored_sign"))
_DRAWN_SIGN = tl.constexpr(SEGMENT_MODES.index("drawn_sign"))


class Tile(NamedTuple):
    """Block sizes of a matrix product; ``resident`` if B is computed once for all rows of a program."""

    resident: bool
    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


#: The tile for few outputs and the tile for any number, by bytes per element. The tiles of float32 are smaller,
#: because its exact products run without tensor cores. No tile spills registers on sm_80, sm_90 and sm_100.
TILES = {
    2: (Tile(True, 128, 64, 64, 8, 2), Tile(False, 64, 32, 64, 8, 3)),
    4: (Tile(True, 64, 32, 32, 4, 2), Tile(False, 64, 16, 32, 8, 1)),
}
#: Rows and channels of a block of the depthwise kernel: neighbours in memory are neighbours in a block.
DEPTHWISE_BLOCKS = {torch.contiguous_format: (512, 1), torch.channels_last: (16, 32)}
WEIGHT_BLOCK = 1024
SEGMENTS_BLOCK = 256


@triton.jit
def _feedback(p_weight, p_stored, p_stream, i_start, o_memory, o_element, mask, bound, scale, MODE: tl.constexpr):
    """Compute B in the weight's dtype, rounded once, as in the reference; ``o_element`` counts in row-major order."""
    b_weight = tl.load(p_weight + i_start + o_memory, mask=mask, other=0)
    b_sign = (b_weight > 0).to(tl.float32) - (b_weight < 0).to(tl.float32)
    if MODE == "sign":
        b_magnitude = scale
    elif MODE == "stored_sign":
        b_magnitude = tl.abs(tl.load(p_stored + i_start + o_memory, mask=mask, other=0).to(tl.float32))
    else:
        seed, draw = tl.load(p_stream), tl.load(p_stream + 1)
        b_word, _, _, _ = tl.philox(seed, o_element.to(tl.uint32), draw.to(tl.uint32), 0, 0)
        b_magnitude = (b_word >> 8).to(tl.float32) * 2.0**-24 * bound
    return (b_sign * b_magnitude).to(p_weight.dtype.element_ty)


@triton.jit
def weight_kernel(
    p_out, p_weight, p_stored, p_stream, elements, channels, taps, bound, scale,
    MODE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute B in memory order [C_out, taps, channels]; a contiguous tensor has one tap and one channel."""
    o_memory = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o_memory < elements
    o_row, o_rest = o_memory // (taps * channels), o_memory % (taps * channels)
    o_element = (o_row * channels + o_rest % channels) * taps + o_rest // channels
    b_feedback = _feedback(p_weight, p_stored, p_stream, 0, o_memory, o_element, mask, bound, scale, MODE)
    tl.store(p_out + o_memory, b_feedback, mask=mask)


@triton.jit
def segments_kernel(
    p_out, p_weight, p_stored, p_stream, p_segments, p_numbers, p_next, p_steps,
    ADVANCES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute B of the segments of a flat tensor, and advance the streams of later passes by their steps.

    Tables: start, length, mode and start of the stored draws of each segment; bound and scale.
    """
    i_k = tl.program_id(1)
    p_segment, p_own_stream = p_segments + 4 * i_k, p_stream + 2 * i_k
    i_start, mode = tl.load(p_segment), tl.load(p_segment + 2)
    bound, scale = tl.load(p_numbers + 2 * i_k), tl.load(p_numbers + 2 * i_k + 1)
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o < tl.load(p_segment + 1)
    p_kept = p_stored + (tl.load(p_segment + 3) - i_start)
    b_feedback = tl.zeros((BLOCK,), dtype=p_weight.dtype.element_ty)
    if mode == _WEIGHT:
        b_feedback = tl.load(p_weight + i_start + o, mask=mask, other=0)
    elif mode == _STORED:
        b_feedback = tl.load(p_kept + i_start + o, mask=mask, other=0).to(p_weight.dtype.element_ty)
    elif mode == _SIGN:
        b_feedback = _feedback(p_weight, p_kept, p_own_stream, i_start, o, o, mask, bound, scale, "sign")
    elif mode == _STORED_SIGN:
        b_feedback = _feedback(p_weight, p_kept, p_own_stream, i_start, o, o, mask, bound, scale, "stored_sign")
    elif mode == _DRAWN_SIGN:
        b_feedback = _feedback(p_weight, p_kept, p_own_stream, i_start, o, o, mask, bound, scale, "drawn_sign")
    tl.store(p_out + i_start + o, b_feedback, mask=mask)
    if ADVANCES:
        o_stream = 2 * i_k + tl.arange(0, 2)
        mask = (o_stream >= 0) & (tl.program_id(0) == 0)  # the first program of the segment
        tl.store(p_next + o_stream, tl.load(p_next + o_stream) + tl.load(p_steps + o_stream), mask=mask)


@triton.jit
def product_kernel(
    p_down, p_up, p_weight, p_stored, p_stream, rows, outputs, inputs, positions, bound, scale,
    MODE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Compute δ_in[n, i, p] = Σ_o δ_out[n, o, p] B[o, i] for row r = (n, p); a matrix product for one position.

    Blocks start at 64-bit addresses; offsets inside a block are 32-bit, which halves the registers.
    """
    i_i = tl.program_id(0).to(tl.int64) * BLOCK_I
    o_o, o_i = tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_I)
    mask_i = (o_i < inputs - i_i)[None, :]
    o_weight = o_o[:, None] * inputs + o_i[None, :]
    if RESIDENT:
        mask = (o_o < outputs)[:, None] & mask_i
        b_feedback = _feedback(p_weight, p_stored, p_stream, i_i, o_weight, i_i + o_weight, mask, bound, scale, MODE)
    for i_r in range(tl.program_id(1), tl.cdiv(rows, BLOCK_R), tl.num_programs(1)):
        o_r = i_r * BLOCK_R + tl.arange(0, BLOCK_R)
        mask_r = (o_r < rows)[:, None]
        o_n, o_p = (o_r // positions).to(tl.int64), o_r % positions
        o_up = (o_n * outputs * positions + o_p)[:, None]
        o_down = (o_n * inputs * positions + o_p)[:, None]
        if RESIDENT:
            p_block = p_up + o_up + (o_o * positions)[None, :]
            b_up = tl.load(p_block, mask=mask_r & (o_o < outputs)[None, :], other=0)
            b_down = tl.dot(b_up, b_feedback, input_precision=PRECISION)
        else:
            b_down = tl.zeros((BLOCK_R, BLOCK_I), dtype=tl.float32)
            for i_k in range(0, outputs, BLOCK_O):
                i_o = tl.cast(i_k, tl.int64)
                mask_o = o_o < outputs - i_k
                mask = mask_o[:, None] & mask_i
                i_w = i_o * inputs + i_i
                b_feedback = _feedback(
                    p_weight, p_stored, p_stream, i_w, o_weight, i_w + o_weight, mask, bound, scale, MODE
                )
                p_block = p_up + i_o * positions + o_up + (o_o * positions)[None, :]
                b_up = tl.load(p_block, mask=mask_r & mask_o[None, :], other=0)
                b_down = tl.dot(b_up, b_feedback, b_down, input_precision=PRECISION)
        p_block = p_down + i_i * positions + o_down + (o_i * positions)[None, :]
        tl.store(p_block, b_down.to(p_down.dtype.element_ty), mask=mask_r & mask_i)


@triton.jit
def depthwise_kernel(
    p_down, p_up, p_weight, p_stored, p_stream, rows, channels, height, width, up_height, up_width, bound, scale,
    kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """δ_in[n, c, h, w] = Σ δ_out[n, c, (h + p - d·k_h)/s, (w + p - d·k_w)/s] B[c, k_h, k_w], for integer quotients."""
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_n, o_h, o_w = (o_r // (height * width)).to(tl.int64), o_r // width % height, o_r % width
    s_c, s_up_c, s_p = height * width, up_height * up_width, 1  # strides of a channel and of a position
    if CHANNELS_LAST:
        s_c, s_up_c, s_p = 1, 1, channels
    mask_c = o_c < channels
    mask = (o_r < rows)[:, None] & mask_c[None, :]
    p_image = p_up + (o_n * channels * up_height * up_width)[:, None] + (o_c * s_up_c)[None, :]
    b_down = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for i_h in range(kernel_h):
        o_from_h = o_h + padding_h - i_h * dilation_h
        o_up_h = o_from_h // stride_h
        mask_h = (o_from_h >= 0) & (o_from_h % stride_h == 0) & (o_up_h < up_height)
        for i_w in range(kernel_w):
            o_from_w = o_w + padding_w - i_w * dilation_w
            o_up_w = o_from_w // stride_w
            mask_up = mask_h & (o_from_w >= 0) & (o_from_w % stride_w == 0) & (o_up_w < up_width)
            p_block = p_image + ((o_up_h * up_width + o_up_w).to(tl.int64) * s_p)[:, None]
            b_up = tl.load(p_block, mask=mask & mask_up[:, None], other=0).to(tl.float32)
            o_weight = (o_c * kernel_h + i_h) * kernel_w + i_w
            b_feedback = _feedback(p_weight, p_stored, p_stream, 0, o_weight, o_weight, mask_c, bound, scale, MODE)
            b_down += b_up * b_feedback.to(tl.float32)[None, :]
    o_down = o_n * channels * height * width + (o_r % (height * width)).to(tl.int64) * s_p
    tl.store(p_down + o_down[:, None] + (o_c * s_c)[None, :], b_down.to(p_down.dtype.element_ty), mask=mask)


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    ones: tuple[str, ...]
    for dtype in DTYPES:
        for advances in (False, True):
            yield Configuration(segments_kernel, dtype, (), segments_options(advances))
        for mode in COMPUTED:
            for ones in (("channels", "taps"), ()):
                yield Configuration(weight_kernel, dtype, ones, weight_options(mode))
            for tile, precision in product(TILES[dtype.itemsize], precisions(dtype)):
                for ones in (("positions",), ()):
                    yield Configuration(product_kernel, dtype, ones, product_options(mode, precision, tile))
            for layout in DEPTHWISE_BLOCKS:
                for ones in (("stride_h", "stride_w", "dilation_h", "dilation_w"), ()):
                    yield Configuration(depthwise_kernel, dtype, ones, depthwise_options(mode, layout))


def weight_options(mode: str) -> dict[str, Any]:
    return {"MODE": mode, "BLOCK": WEIGHT_BLOCK, "num_warps": 4, "num_stages": 1}


def segments_options(advances: bool) -> dict[str, Any]:
    return {"ADVANCES": advances, "BLOCK": SEGMENTS_BLOCK, "num_warps": 4, "num_stages": 1}


def product_options(mode: str, precision: Products, tile: Tile) -> dict[str, Any]:
    blocks = {"RESIDENT": tile.resident, "BLOCK_R": tile.rows, "BLOCK_O": tile.outputs, "BLOCK_I": tile.inputs}
    return {"MODE": mode, "PRECISION": precision, **blocks, "num_warps": tile.warps, "num_stages": tile.stages}


def depthwise_options(mode: str, layout: torch.memory_format) -> dict[str, Any]:
    rows, channels = DEPTHWISE_BLOCKS[layout]
    blocks = {"CHANNELS_LAST": layout == torch.channels_last, "BLOCK_R": rows, "BLOCK_C": channels}
    return {"MODE": mode, **blocks, "num_warps": 4, "num_stages": 1}
