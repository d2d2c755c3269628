"""The precision of maps: one contract for all implementations.

Maps that the backward pass reads may be stored in a narrower dtype than the weights, bfloat16. They have the dtype of
the state x from which they are computed:

- The state, the maps before normalisations and the maps between two stages are rounded to it once, when they are
  written. Whatever reads them afterwards, in either pass, reads the rounded numbers.
- The sums for batch normalisation are those of the maps before they are rounded.
- Everything else has at least float32: arithmetic, sums, moments, weights, mixing weights, the sums over an edge, the
  gradients of all of these, and the errors.

The Triton kernels and those for discrete cells store the sums over an edge, their gradients and the errors in the dtype
of the maps, too, as autocast does with what enters and leaves a convolution.

Implementations that multiply bfloat16 in hardware may round the factors of matrix products as well, the depthwise
output and the error as well as the weights; the products are summed in float32.
"""

from __future__ import annotations

import torch


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of arithmetic on maps: their own, at least float32."""
    return torch.promote_types(dtype, torch.float32)
