"""The compiled kernels in tests: marks that skip without them, and the backends that a test runs on."""

from __future__ import annotations

import pytest

from bionas_fast import native
from bionas_fast.backends import explain

needs_native = pytest.mark.skipif(not native.load(), reason=f"no compiled kernels: {native.status().reason}")
BACKENDS = [pytest.param("reference"), pytest.param("native", marks=needs_native)]


def skip_without(backend: str, op: str = "hebbian_update") -> None:
    """Skip where the backend of an op does not run on the CPU."""
    if reason := explain(op, "cpu").reasons.get(backend):
        pytest.skip(reason)
