"""Random numbers of feedback weights: the same bits from every implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bionas_fast import backends, native, torch_private
from bionas_fast.kernels.feedback import reference


def uniform(shape: Sequence[int], stream: Tensor) -> Tensor:
    """Draw from [0, 1) by the compiled kernels where they can run, otherwise by the reference.

    Args:
        shape: the shape of the result.
        stream: int64 [2], the seed and the index of the draw.

    Returns:
        float32, on the stream's device.
    """
    plain = not backends.traced() and not torch_private.in_transform()
    if plain and backends.chosen() in (None, "native") and not native.obstacle(stream.device.type):
        return torch.ops.bionas_fast_native.uniform.default(list(shape), stream)
    return reference.uniform(shape, stream)
