"""Helpers for the launchers of Triton kernels; this module does not import Triton."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

#: Limits of 32-bit counters in kernels: rows, with room for the last block, and offsets inside a block.
ROW_LIMIT, BLOCK_LIMIT = 2**30, 2**28


#: Precisions of products of float32 numbers: exact up to rounding, or of factors rounded to 11 bits.
Products = Literal["ieee", "tf32"]


class Configuration(NamedTuple):
    """A launchable kernel: its options, and the sizes that are 1 in this configuration."""

    kernel: Any
    dtype: torch.dtype
    ones: tuple[str, ...]
    options: dict[str, Any]


def precisions(dtype: torch.dtype) -> tuple[Products, ...]:
    """Return the precisions in which kernels multiply numbers of this dtype; narrower ones are multiplied exactly."""
    return ("ieee", "tf32") if dtype == torch.float32 else ("ieee",)


def product_precision(dtype: torch.dtype) -> Products:
    """Return the precision of products in a launch: that of cuBLAS at this time."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def address_table(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Create a look-up table of addresses, [rows, columns]; the transfer to a GPU is asynchronous."""
    made = torch.tensor(rows, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=True)


def addresses(maps: Iterable[Tensor | None], dtype: torch.dtype) -> tuple[list[Tensor], list[int]]:
    """Return contiguous maps and their addresses; 0 for None.

    Args:
        maps: tensors of one shape; several may be the same. The contiguous ones must be kept alive until the kernel
            that reads the addresses is launched.
    """
    each = list(maps)
    dense = {id(one): one.to(dtype).contiguous() for one in each if one is not None}
    return list(dense.values()), [0 if one is None else dense[id(one)].data_ptr() for one in each]


def fits(x: Tensor, dtypes: Sequence[torch.dtype]) -> bool:
    """Whether kernels can count the positions of activations [..., N, H, W, C] and support their dtype."""
    images, height, width, channels = x.shape[-4:]
    rows, block = images * height * width, max(height * width, channels) * channels
    return x.dtype in dtypes and rows < ROW_LIMIT and block < BLOCK_LIMIT


def grid(count: int, rows: int, channels: int, options: dict[str, Any]) -> tuple[int, int]:
    """Compute the launch grid for ``count`` maps [rows, channels].

    First dimension: blocks of rows, within each all maps, since these may read the same input. Second: blocks of
    channels.
    """
    return count * -(-rows // options["BLOCK_R"]), -(-channels // options["BLOCK_C"])
