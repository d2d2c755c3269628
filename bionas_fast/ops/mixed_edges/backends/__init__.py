"""The backends of mixed_edges."""

from __future__ import annotations

from bionas_fast.kernels.batch_norm import Synchroniser
from bionas_fast.ops.mixed_edges.backends.base import Backend
from bionas_fast.ops.mixed_edges.backends.native import Fused, Native
from bionas_fast.ops.mixed_edges.backends.reference import Reference

__all__ = ["Backend", "find"]

# A dictionary, because torch.compile would trace through functools.cache.
_alone: dict[str, Backend] = {"reference": Reference(), "native": Fused()}


def find(name: str, synchroniser: Synchroniser | None = None) -> Backend:
    """Look up a backend: ``reference`` for any tensor, ``native`` for float32 on the CPU, ``triton`` for GPUs.

    ``traced`` is ``triton`` for tracers.

    Args:
        synchroniser: sums the statistics of batch normalisation over processes; no kernel is then fused across a
            normalisation.
    """
    if synchroniser is None and name in _alone:
        return _alone[name]
    if name == "triton":
        from bionas_fast.ops.mixed_edges.backends.triton import Triton  # optional, slow to import

        if synchroniser is None:
            _alone[name] = Triton()
            return _alone[name]
        return Triton(synchroniser)
    if name == "traced" and synchroniser is None:
        from bionas_fast.ops.mixed_edges.backends.traced import Traced  # imports Triton, too

        _alone[name] = Traced()
        return _alone[name]
    return Native(synchroniser) if name == "native" else Reference(synchroniser)
