"""The device of a run."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from bionas_fast import backends, native
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


#: How much longer a step takes on a CPU without the kernels, by op: docs/how-the-kernels-work.md has the measurement.
_SLOWER = {"mixed_edges": "10 to 15 times", "feedback_conv": "up to 2 times"}


def describe_device(device: torch.device, op: str = "feedback_conv") -> str:
    """Describe a device and the backend that runs an op on it, for people; say what is missing for a faster one."""
    if device.type == "cuda":
        place = f"{device}, {torch.cuda.get_device_name(device)}"
    else:
        threads = torch.get_num_threads()
        place = f"{device.type}, {threads} thread{'' if threads == 1 else 's'}"
    choice = backends.explain(op, device.type)
    chosen = backends.chosen() or choice.backend
    if chosen == "native":
        return f"{place}, compiled kernels ({native.status().isa})"
    if chosen == "triton":
        return f"{place}, Triton kernels"
    slower = f"{_SLOWER[op] if device.type == 'cpu' else ''} slower than the kernels".lstrip()
    if backends.chosen():
        return f"{place}, plain PyTorch as chosen, {slower}"
    wanted = "native" if device.type == "cpu" else "triton"
    advice = "; a C++ compiler, such as Debian's g++, is all they need" if wanted == "native" else ""
    return f"{place}, plain PyTorch, {slower} ({choice.reasons.get(wanted, '')}{advice})"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for the copy, which later work on the device does."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
