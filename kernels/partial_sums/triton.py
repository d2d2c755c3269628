"""Sums of partial sums in Triton, specified by :mod:`.reference`. One launch for several tensors of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from ..tables import Row, table
from .triton_kernels import DTYPES, OPTIONS, TENSORS, add_up_kernel, configurations

__all__ = ["DTYPES", "add_up", "configurations"]


def add_up(partial: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Add up to :data:`.triton_kernels.TENSORS` tensors over their programs, see :func:`.reference.add_up`."""
    shapes = tuple((own.shape[0], own.shape[1]) for own in partial)
    out = partial[0].new_empty(sum(length for _, length in shapes), dtype=dtype)
    blocks = _blocks(shapes)
    if blocks:
        each = [own.contiguous() for own in partial]
        with torch.cuda.device_of(out):
            add_up_kernel[(len(blocks),)](
                p_out=out,
                **{f"p_partial{number}": own for number, own in enumerate([*each, *each[-1:] * (TENSORS - len(each))])},
                p_blocks=table(blocks, out.device),
                **OPTIONS,
            )
    return out


@lru_cache(maxsize=1024)
def _blocks(shapes: tuple[tuple[int, int], ...]) -> tuple[Row, ...]:
    """Describe the programs of :func:`.triton_kernels.add_up_kernel`."""
    starts = accumulate((length for _, length in shapes), initial=0)
    return tuple(
        (number, first, programs, length, start)
        for number, ((programs, length), start) in enumerate(zip(shapes, starts, strict=False))
        for first in range(0, length, OPTIONS["BLOCK"])
    )
