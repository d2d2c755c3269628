"""The device of a run."""

from __future__ import annotations

import os

import torch

from bionas_fast.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Look up a device by its name; ``auto`` is a CUDA device if one is available, else the CPU.

    Each process that ``torchrun`` starts on a machine gets a separate CUDA device; see :func:`local_cuda_index`.

    Raises:
        InputError: the device does not exist on this machine.
    """
    if name == "auto":
        name = automatic()
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{local_cuda_index()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is not a device; write auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {name!r} is not available here; CUDA devices found: {torch.cuda.device_count()}")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: {name!r} is not supported; write auto, cpu, cuda or cuda:1")
    return device


def automatic() -> str:
    """Return the type of the device ``auto``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def local_cuda_index() -> int:
    """Return the index of this process's CUDA device, which may not exist: the number of the process on its machine.

    Where a process sees one device only, this is its own: schedulers set ``CUDA_VISIBLE_DEVICES`` for each process.
    """
    return 0 if torch.cuda.device_count() == 1 else int(os.environ.get("LOCAL_RANK", 0))
