"""The Triton kernels as a backend."""

from __future__ import annotations

from bionas_fast.kernels.mixed_sum import triton as mixed_sum
from bionas_fast.kernels.pooling import triton as pooling
from bionas_fast.kernels.separable_stage import triton as separable_stage
from bionas_fast.ops.mixed_edges.backends.base import Backend


class Triton(Backend):
    """Triton kernels for GPUs; cases that they do not support run on the reference."""

    stage_forward = staticmethod(separable_stage.forward)
    stage_backward = staticmethod(separable_stage.backward)
    sum_forward = staticmethod(mixed_sum.forward)
    sum_backward = staticmethod(mixed_sum.backward)
    pooling_forward = staticmethod(pooling.forward)
    pooling_backward = staticmethod(pooling.backward)
