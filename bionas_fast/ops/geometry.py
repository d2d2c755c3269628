"""Stride, padding, dilation and groups as arguments: one number, or one per dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from bionas_fast.errors import InputError
from bionas_fast.kernels.window import Window

PerDimension = int | Sequence[int]


class Geometry(TypedDict, total=False):
    """The keyword arguments of a convolution; the defaults are 1, 0, 1 and 1."""

    stride: PerDimension
    padding: PerDimension
    dilation: PerDimension
    groups: int


def per_dimension(name: str, value: PerDimension, dims: int) -> list[int]:
    """Expand a value to one number per dimension.

    Raises:
        InputError: the length is neither 1 nor the number of dimensions.
    """
    values = [value] * dims if isinstance(value, int) else list(value)
    if len(values) != dims:
        raise InputError(f"{name}: expected one number or {dims}, got {values}")
    return values


def window(
    dims: int,
    *,
    stride: PerDimension = 1,
    padding: PerDimension = 0,
    dilation: PerDimension = 1,
    groups: int = 1,
) -> Window:
    """Convert a :class:`Geometry` to a record for ``dims`` dimensions.

    Raises:
        InputError: a wrong length; the message names the argument.
    """
    return Window(
        per_dimension("stride", stride, dims),
        per_dimension("padding", padding, dims),
        per_dimension("dilation", dilation, dims),
        groups,
    )
