"""Helpers for the launchers of Triton kernels; this module does not import Triton."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bionas_fast.choices import Products

#: Limits of 32-bit counters in kernels: rows, with room for the last block, and offsets inside a block.
ROW_LIMIT, BLOCK_LIMIT = 2**30, 2**28


#: Stacks of maps that one launch can read.
BASES = 8


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


#: The stack of a map and its number there; (-1, 0) for none.
Place = tuple[int, int]


class Located(NamedTuple):
    """Maps of one shape, as kernels find them: up to :data:`BASES` tensors, and a place in one of these for each.

    Attributes:
        bases: contiguous stacks of maps; the last is repeated.
        places: (base, number in its stack) of each map; (-1, 0) for None.
    """

    bases: list[Tensor]
    places: tuple[Place, ...]

    def arguments(self, name: str) -> dict[str, Tensor]:
        """Return the bases as arguments of a kernel."""
        return {f"{name}{number}": base for number, base in enumerate(self.bases)}

    def pairs(self) -> tuple[tuple[int, int, int, int], ...]:
        """Put the place of each map of the first half before that of its partner in the second half."""
        count = len(self.places) // 2
        return tuple((*one, *other) for one, other in zip(self.places[:count], self.places[count:], strict=True))


def locate(stacks: Iterable[Tensor | None], dtype: torch.dtype, like: Tensor) -> Located:
    """Find maps in memory without a table of addresses, which would have to be copied to the device.

    Args:
        stacks: [K_i, ...] each; None for one map that is missing. Several may be the same.
        like: a tensor to pass in place of maps if all are missing.
    """
    runs: list[list[Tensor]] = []  # of stacks that follow one another in memory
    seen: dict[int, Place] = {}
    places: list[Place] = []
    kept = []  # for the sake of their identities
    for given in stacks:
        if given is None:
            places.append((-1, 0))
            continue
        if not len(given):
            continue
        if id(given) not in seen:
            kept.append(given)
            dense = given.to(dtype).contiguous()
            if not runs or not _follows(dense, runs[-1]):
                runs.append([])
            seen[id(given)] = len(runs) - 1, sum(map(len, runs[-1]))
            runs[-1].append(dense)
        run, first = seen[id(given)]
        places += [(run, first + number) for number in range(len(given))]
    if len(runs) > BASES:
        runs, moved = _merged(runs)
        places = [(moved[run][0], moved[run][1] + number) if run >= 0 else (run, number) for run, number in places]
    bases = [run[0] for run in runs] or [like]
    return Located([*bases, *bases[-1:] * (BASES - len(bases))], tuple(places))


def _merged(runs: Sequence[Sequence[Tensor]]) -> tuple[list[list[Tensor]], dict[int, Place]]:
    """Concatenate the shortest runs such that :data:`BASES` remain; return these, and where each run went."""
    sizes = [sum(map(len, run)) for run in runs]
    order = sorted(range(len(runs)), key=sizes.__getitem__)
    together, alone = order[: len(runs) - BASES + 1], order[len(runs) - BASES + 1 :]
    firsts = accumulate((sizes[run] for run in together), initial=0)
    moved = {run: (0, first) for run, first in zip(together, firsts, strict=False)}
    moved |= {run: (number, 0) for number, run in enumerate(alone, 1)}
    return [[torch.cat([stack for run in together for stack in runs[run]])], *([*runs[run]] for run in alone)], moved


def _follows(stack: Tensor, run: list[Tensor]) -> bool:
    """Whether a stack begins in memory where the run of others ends."""
    end = run[-1].storage_offset() + run[-1].numel()
    same = stack.untyped_storage().data_ptr() == run[0].untyped_storage().data_ptr()
    return same and bool(stack.storage_offset() == end) and stack.numel() > 0


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
