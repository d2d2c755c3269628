"""Environment variables of ``torchrun``, read before a process group is formed and without torch."""

from __future__ import annotations

import os


def started() -> int:
    """Return the number of processes started by ``torchrun``."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched_rank() -> int:
    """Return the rank of this process among those started by ``torchrun``."""
    return int(os.environ.get("RANK", 0)) if started() > 1 else 0
