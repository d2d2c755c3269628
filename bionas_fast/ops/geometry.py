"""Stride, padding and dilation as users give them: a number, or one for each dimension."""

from __future__ import annotations

from collections.abc import Sequence

from bionas_fast.errors import InputError

PerDimension = int | Sequence[int]


def per_dimension(name: str, value: PerDimension, dims: int) -> list[int]:
    """One number for each dimension.

    Raises:
        InputError: another number of numbers.
    """
    values = [value] * dims if isinstance(value, int) else list(value)
    if len(values) != dims:
        raise InputError(f"{name}: expected one number or {dims}, got {values}")
    return values


def window(
    stride: PerDimension, padding: PerDimension, dilation: PerDimension, dims: int
) -> tuple[list[int], list[int], list[int]]:
    """All three, one number for each dimension.

    Raises:
        InputError: another number of numbers, naming the argument.
    """
    return (
        per_dimension("stride", stride, dims),
        per_dimension("padding", padding, dims),
        per_dimension("dilation", dilation, dims),
    )
