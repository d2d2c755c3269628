"""The specification of sums of partial sums in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def add_up(partial: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Compute Σ over the programs p of partial[i][p], concatenated over i.

    Args:
        partial: [programs_i, L_i] each, float32; no program means zeros.

    Returns:
        [Σ L_i], rounded to a dtype.
    """
    return torch.cat([own.sum(dim=0) for own in partial]).to(dtype)
