"""How far a result may be from its oracle, by the dtype it was computed in."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
    torch.int64: {"rtol": 0, "atol": 0},
}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Same shape, dtype and device, and values within the tolerance of ``dtype``, by default that of ``actual``."""
    torch.testing.assert_close(actual, expected, **TOLERANCES[dtype or actual.dtype])
