"""The geometry of a convolution as one record."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """Stride, padding and dilation, one number per dimension each, and the number of groups of channels."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int = 1
