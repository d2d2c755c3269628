"""The table of tolerances: the distance that a result may have from its oracle, and the reason.

Entries with ``rtol`` and ``atol`` are for :func:`torch.testing.assert_close`; numbers are errors relative to the
largest entry. A test that needs another one says why where it stands.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: By the dtype that a result was computed in.
TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
    torch.int64: {"rtol": 0, "atol": 0},
}


#: Nothing but copies and the same operations in the same order.
SAME_BITS = {"rtol": 0, "atol": 0}
#: Both engines in float64: sums in another order, through several layers and batch normalisations.
ENGINES = {"rtol": 1e-9, "atol": 1e-12}
#: As above, for whole populations, whose logits are sums of more terms.
POPULATIONS = {"rtol": 1e-9, "atol": 1e-11}
#: Architectures after the published number of Adam's steps: a step is at most about 3e-4, rounding far less.
ALPHAS = {"rtol": 0, "atol": 1e-6}

#: Recordings of single layers, operations and cells, as the recordings suggest it: float32 against float32.
RECORDED = 1e-5
#: Recordings of whole networks, as they suggest it; the published code itself reaches 4e-6 in float32.
RECORDED_NETWORK = 1e-4


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Same shape, dtype and device, and values within the tolerance of ``dtype``, by default that of ``actual``."""
    torch.testing.assert_close(actual, expected, **TOLERANCES[dtype or actual.dtype])
