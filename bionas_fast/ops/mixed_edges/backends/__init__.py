"""The implementations of the kernels of mixed_edges."""

from __future__ import annotations

from bionas_fast.kernels.batch_norm import Synchroniser
from bionas_fast.ops.mixed_edges.backends.base import Backend
from bionas_fast.ops.mixed_edges.backends.native import Fused, Native
from bionas_fast.ops.mixed_edges.backends.reference import Reference

__all__ = ["Backend", "find"]

# A dictionary, for a compiler would look through a cache.
_alone: dict[str, Backend] = {"reference": Reference(), "native": Fused()}


def find(name: str, synchroniser: Synchroniser | None = None) -> Backend:
    """The backend of a name: ``reference`` for any tensor, ``native`` for float32 on the CPU, ``triton`` for GPUs.

    Args:
        synchroniser: where one is given, the statistics of batch normalisation are summed up over processes. Then no
            kernel is fused across a normalisation.
    """
    if synchroniser is None and name in _alone:
        return _alone[name]
    if name == "triton":
        from bionas_fast.ops.mixed_edges.backends.triton import Triton  # not on every system, and slow to import

        if synchroniser is None:
            _alone[name] = Triton()
            return _alone[name]
        return Triton(synchroniser)
    return Native(synchroniser) if name == "native" else Reference(synchroniser)
