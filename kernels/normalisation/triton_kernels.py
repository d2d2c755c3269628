"""Triton kernels of batch normalisation from sums, and their launch configurations; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index. Sums come as float32 partial sums over blocks of
positions, and are added up in float64, in which all arithmetic is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ..batch_norm import EPSILON
from ..launching import Configuration

#: Channels of a block; blocks are as small as possible.
WIDTHS = (16, 64)


@triton.jit
def _total(p_partial, blocks, channels, o_c, mask_c, BLOCK_B: tl.constexpr):
    """Add up [blocks, channels] over blocks."""
    b_total = tl.zeros(o_c.shape, dtype=tl.float64)
    for i_b in range(0, blocks, BLOCK_B):
        o_b = i_b + tl.arange(0, BLOCK_B)
        o_partial = (o_b.to(tl.int64) * channels)[:, None] + o_c[None, :]
        b_partial = tl.load(p_partial + o_partial, mask=(o_b < blocks)[:, None] & mask_c[None, :], other=0)
        b_total += tl.sum(b_partial.to(tl.float64), axis=0)
    return b_total


@triton.jit
def _reciprocal(b):
    """Compute 1 / b of positive float64 by Newton's method: a division would call a routine that needs a stack."""
    b_found = (1.0 / b.to(tl.float32)).to(tl.float64)
    b_found = b_found * (2.0 - b * b_found)
    return b_found * (2.0 - b * b_found)


@triton.jit
def _rsqrt(b):
    """Compute 1 / √b of positive float64 in the same way."""
    b_found = tl.rsqrt(b.to(tl.float32)).to(tl.float64)
    b_found = b_found * (1.5 - 0.5 * b * b_found * b_found)
    return b_found * (1.5 - 0.5 * b * b_found * b_found)


@triton.jit(do_not_specialize=["positions", "narrow"])
def moments_kernel(
    p_weight, p_shift, p_mean, p_var, p_running_mean, p_running_var, p_sums0, p_sums1, p_sums2, p_factors, p_programs,
    positions, channels, narrow, momentum, EPSILON: tl.constexpr, TRAINING: tl.constexpr,
    HAS_FACTORS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute weight and shift of each term, factor · (map - mean) · rstd = weight · map + shift, [terms, channels].

    In training also the moments of each normalised map, [maps, channels], from its sums over blocks of positions; and
    the running statistics move, [maps, narrow]; without any ``narrow`` is 0. Otherwise the moments are read.

    Table, [programs, 8]: the map; the term, or -1; whether this program stores the map's moments; whether the map is
    normalised; the tensor of its sums; the first rows of its Σ and of its Σ of squares there; the number of rows.
    """
    p_row = p_programs + 8 * tl.program_id(0)
    i_map, i_term = tl.load(p_row), tl.load(p_row + 1)
    is_first, is_normalised = tl.load(p_row + 2) != 0, tl.load(p_row + 3) != 0
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < channels
    o_map = i_map * channels + o_c
    if TRAINING:
        i_base, blocks = tl.load(p_row + 4), tl.load(p_row + 7).to(tl.int32)
        p_sums = tl.where(i_base == 0, p_sums0, tl.where(i_base == 1, p_sums1, p_sums2))
        p_total, p_squares = p_sums + tl.load(p_row + 5) * channels, p_sums + tl.load(p_row + 6) * channels
        b_positions = tl.cast(positions, tl.float64)
        b_share = _reciprocal(b_positions)
        b_mean = _total(p_total, blocks, channels, o_c, mask_c, BLOCK_B) * b_share
        b_var = _total(p_squares, blocks, channels, o_c, mask_c, BLOCK_B) * b_share - b_mean * b_mean
        b_var = tl.where(b_var < 0, 0, b_var)  # propagates NaN
        tl.store(p_mean + o_map, b_mean, mask=mask_c & is_first)
        tl.store(p_var + o_map, b_var, mask=mask_c & is_first)
        mask = (o_c < narrow) & is_first
        o_running = i_map * narrow + o_c
        b_unbiased = b_var * (b_positions * _reciprocal(tl.where(b_positions > 1, b_positions - 1, 1)))
        b_old = tl.load(p_running_mean + o_running, mask=mask, other=0)
        tl.store(p_running_mean + o_running, b_old + momentum * (b_mean.to(tl.float32) - b_old), mask=mask)
        b_old = tl.load(p_running_var + o_running, mask=mask, other=0)
        tl.store(p_running_var + o_running, b_old + momentum * (b_unbiased.to(tl.float32) - b_old), mask=mask)
    else:
        b_mean = tl.load(p_mean + o_map, mask=mask_c & is_normalised, other=0)
        b_var = tl.load(p_var + o_map, mask=mask_c & is_normalised, other=0)
    b_weight = tl.where(is_normalised, _rsqrt(b_var + EPSILON), 1.0)
    if HAS_FACTORS:
        b_weight *= tl.load(p_factors + i_term, mask=i_term >= 0, other=0).to(tl.float64)
    o_term, mask = i_term * channels + o_c, mask_c & (i_term >= 0)
    tl.store(p_weight + o_term, b_weight.to(tl.float32), mask=mask)
    tl.store(p_shift + o_term, (-b_weight * b_mean).to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["positions", "blocks", "edges", "terms", "normalised"])
def gradients_kernel(
    p_factor_grads, p_a, p_b, p_d, p_sums, p_mean, p_var, p_factors, p_firsts, p_terms,
    positions, blocks, channels, edges, terms, normalised, EPSILON: tl.constexpr, HAS_FACTORS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of each factor, summed over a block of channels, and a, b and d of ``TermGradients``.

    ``positions`` is 0 if the moments were not those of the batch: b and d are 0 then.

    Sums, [edges + terms, blocks, channels]: Σ gradient of each edge; Σ of its product with the map of each term or,
    without factors, with the normalised map. Tables: the first term of each map; of terms, [terms, 2], term and edge.
    """
    i_map = tl.program_id(0).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = o_c < channels
    o_map, mask = i_map * channels + o_c, mask_c & (i_map < normalised)
    b_mean = tl.load(p_mean + o_map, mask=mask, other=0)
    b_rstd = 1.0 / tl.sqrt(tl.load(p_var + o_map, mask=mask, other=1) + EPSILON)
    b_rstd = tl.where(i_map < normalised, b_rstd, 1.0)
    b_grad_sum = tl.zeros(o_c.shape, dtype=tl.float64)
    b_normalised = tl.zeros(o_c.shape, dtype=tl.float64)
    for i in range(tl.load(p_firsts + i_map), tl.load(p_firsts + i_map + 1)):
        i_term, i_edge = tl.load(p_terms + 2 * i), tl.load(p_terms + 2 * i + 1)
        b_sum = _total(p_sums + i_edge * blocks * channels, blocks, channels, o_c, mask_c, BLOCK_B)
        b_product = _total(p_sums + (edges + i_term) * blocks * channels, blocks, channels, o_c, mask_c, BLOCK_B)
        b_a = b_rstd
        if HAS_FACTORS:
            b_product = b_rstd * (b_product - b_mean * b_sum)
            tl.store(p_factor_grads + tl.program_id(1) * terms + i_term, tl.sum(b_product, axis=0).to(tl.float32))
            b_factor = tl.load(p_factors + i_term).to(tl.float64)
            b_a, b_sum, b_product = b_a * b_factor, b_sum * b_factor, b_product * b_factor
        b_grad_sum += b_sum
        b_normalised += b_product
        tl.store(p_a + i_term * channels + o_c, b_a.to(tl.float32), mask=mask_c)
    b_share = tl.where(positions > 0, 1.0 / tl.cast(tl.maximum(positions, 1), tl.float64), 0.0)
    b_slope = b_rstd * b_rstd * b_normalised * b_share
    b_d = b_slope * b_mean - b_rstd * b_grad_sum * b_share
    tl.store(p_b + o_map, (-b_slope).to(tl.float32), mask=mask)
    tl.store(p_d + o_map, b_d.to(tl.float32), mask=mask)


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel, each with sizes divisible by 16 and with others."""
    for width, factors in product(WIDTHS, (True, False)):
        yield Configuration(gradients_kernel, torch.float32, (), gradient_options(width, factors))
        for training in (True, False):
            yield Configuration(moments_kernel, torch.float32, (), moment_options(width, training, factors))


def gradient_options(channels: int, factors: bool) -> dict[str, Any]:
    width = next((width for width in WIDTHS if channels <= width), WIDTHS[-1])
    sizes = {"BLOCK_B": 2048 // width, "BLOCK_C": width}
    return {"EPSILON": EPSILON, "HAS_FACTORS": factors, **sizes, "num_warps": 4, "num_stages": 1}


def moment_options(channels: int, training: bool, factors: bool) -> dict[str, Any]:
    width = next((width for width in WIDTHS if channels <= width), WIDTHS[-1])
    return {**gradient_options(channels, factors), "TRAINING": training, "BLOCK_B": 1024 // width}
