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

#: The same of gradients, where more sums follow each other: of alphas with edge normalisation, through Hebbian layers.
ENGINE_GRADIENTS = {"rtol": 1e-7, "atol": 1e-10}
PLASTIC_ENGINES = {"rtol": 1e-9, "atol": 1e-9}
PLASTIC_GRADIENTS = {"rtol": 1e-8, "atol": 1e-10}
#: Kernels in float32 against float64, where a sum may cancel: the largest terms are about 1.
CANCELLING = {"rtol": 1e-4, "atol": 1e-4}
POOLED = {"rtol": 1e-5, "atol": 1e-5}
#: Several passes in flight in float32: gradients of two runs whose sums have another order.
PASSES = {"rtol": 1e-3, "atol": 1e-7}

#: Relative to the largest entry, both engines in float64: one forward pass, a gradient, and gradients through rules of
#: a user's own, whose feedback passes through float32.
OUTPUT_FLOAT64 = 1e-12
GRADIENT_FLOAT64 = 1e-9
USER_RULE_FLOAT64 = 1e-8
#: The same in float32, for sums in another order: threads, checkpointing, conversion between the engines.
REORDERED_FLOAT32 = 1e-5
#: Compiled kernels in float32 against their specifications in float64: one sum, a stage of two convolutions, two such
#: stages with batch normalisations between them.
SUM_FLOAT32 = 1e-5
STAGE_FLOAT32 = 3e-5
EDGES_FLOAT32 = 3e-4
#: Relative norms with maps in bfloat16, see ``kernels.maps``: where both round the same numbers, and a few ties differ;
#: and next to maps in float32, where a second ReLU lets other errors pass.
NARROW_EDGES = 1e-3
NARROW_MAPS = 0.1
#: The same of gradients in the training of one cell, small differences of large terms: in 60 draws at most 3.7e-3.
NARROW_PLANAR = 5e-3

#: Recordings of single layers, operations and cells, as the recordings suggest it: float32 against float32.
RECORDED = 1e-5
#: Recordings of whole networks, as they suggest it; the published code itself reaches 4e-6 in float32.
RECORDED_NETWORK = 1e-4


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Same shape, dtype and device, and values within the tolerance of ``dtype``, by default that of ``actual``."""
    torch.testing.assert_close(actual, expected, **TOLERANCES[dtype or actual.dtype])
