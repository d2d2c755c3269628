"""Padding of torch.nn's convolutions, in every mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def pad(layer: Any, input: Tensor) -> tuple[Tensor, list[int]]:
    """Apply the padding of a torch.nn convolution that the convolution op does not support.

    Args:
        layer: the layer, with attributes ``padding``, ``padding_mode``, ``kernel_size`` and ``dilation``.

    Returns:
        The padded input, and the padding that remains for the convolution op.
    """
    before, after = _amounts(layer)
    if layer.padding_mode == "zeros" and before == after:
        return input, before
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    # F.pad expects the last dimension first.
    amounts = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(input, amounts, mode=mode), [0] * len(before)


def _amounts(layer: Any) -> tuple[list[int], list[int]]:
    """Compute the padding before and after the input in each dimension."""
    if not isinstance(layer.padding, str):
        return list(layer.padding), list(layer.padding)
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size), [0] * len(layer.kernel_size)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [span // 2 for span in spans], [span - span // 2 for span in spans]
