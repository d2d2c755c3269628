"""The Triton kernel of sums of partial sums, and its launch configuration; launched by :mod:`.triton`.

Prefixes: p_ pointer, b_ block of values, o_ offsets, i_ index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..launching import Configuration

#: The dtypes of the sums; partial sums are float32.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Tensors of partial sums that one launch can read.
TENSORS = 3
OPTIONS: dict[str, Any] = {"BLOCK": 256, "num_warps": 4, "num_stages": 1}


@triton.jit
def add_up_kernel(p_out, p_partial0, p_partial1, p_partial2, p_blocks, BLOCK: tl.constexpr):
    """Add up a block of columns of one tensor [programs, length], in the order of the programs.

    Table, [blocks, 5]: the tensor, the first column, the number of programs, the length, and where it starts in the
    sums.
    """
    p_row = p_blocks + 5 * tl.program_id(0)
    i_tensor, i_first, programs = tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2).to(tl.int32)
    length, i_start = tl.load(p_row + 3), tl.load(p_row + 4)
    p_partial = tl.where(i_tensor == 0, p_partial0, tl.where(i_tensor == 1, p_partial1, p_partial2))
    o = i_first + tl.arange(0, BLOCK)
    mask = o < length
    b_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for i_p in range(programs):
        b_sum += tl.load(p_partial + i_p * length + o, mask=mask, other=0)
    tl.store(p_out + i_start + o, b_sum.to(p_out.dtype.element_ty), mask=mask)


def configurations() -> Iterator[Configuration]:
    """Yield every launchable kernel."""
    for dtype in DTYPES:
        yield Configuration(add_up_kernel, dtype, (), OPTIONS)
