"""Constant tensors: numbers that follow from a plan, not from data. Each is made once per device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bionas_fast import torch_private

Row = tuple[float, ...]


def table(rows: Row | tuple[Row, ...], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return the tensor of some numbers; equal ones share it, so it must not be changed.

    The first call copies the numbers to the device, and waits for that; later calls do neither. The numbers are the
    key, so copies of a plan find their tables, also on another device.
    """
    if _traced():
        return torch.tensor(rows, dtype=dtype, device=device)
    return _table(rows, device, dtype)


def one_hot(numbers: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """Return the float64 matrix [count, N] with ones at (numbers[i], i); it adds rows [N, …] up by number."""
    return _made_one_hot(numbers, count, device) if _traced() else _one_hot(numbers, count, device)


def filled(value: float, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return a float32 tensor of one value; equal ones share it, so it must not be changed."""
    if _traced():
        return torch.full(shape, value, device=device, dtype=torch.float32)
    return _filled(value, tuple(shape), device)


def _traced() -> bool:
    """Whether a tracer is active: it records how a tensor is made, and a fake tensor must not outlive its mode."""
    return torch.compiler.is_compiling() or torch_private.has_dispatch_modes()


@lru_cache(maxsize=4096)
def _table(rows: Row | tuple[Row, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=dtype, device="cpu").to(device)


@lru_cache(maxsize=1024)
def _one_hot(numbers: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _made_one_hot(numbers, count, "cpu").to(device)


def _made_one_hot(numbers: tuple[int, ...], count: int, device: torch.device | str) -> Tensor:
    rows = [[float(n == k) for n in numbers] for k in range(count)]
    return torch.tensor(rows, dtype=torch.float64, device=device).view(count, len(numbers))


@lru_cache(maxsize=1024)
def _filled(value: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
    # Copied, and thus waited for: the first use may be on another stream than a later one.
    with torch.inference_mode(False):
        return torch.full(shape, value, device="cpu", dtype=torch.float32).to(device)
