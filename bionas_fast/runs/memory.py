"""Errors about runs that need more memory than there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bionas_fast.errors import InputError

#: Networks of at most this many channels² · cells are built without an estimate.
_SMALL = 1_000_000
#: The network from whose size that of a larger one is extrapolated.
_CHANNELS, _CELLS = 64, 3
#: Bytes for each weight while it is trained: weight, gradient and momentum in float32.
_BYTES = 12


def expect_memory(build: Callable[[int, int], nn.Module], channels: int, cells: int, device: torch.device) -> None:
    """Check that the weights of a network, their gradients and momenta fit into memory, before it is built.

    Args:
        build: builds the network, given channels and cells. Its weights grow as channels² · cells.
        device: the device of the run.

    Raises:
        InputError: they do not fit.
    """
    if channels**2 * cells <= _SMALL:
        return
    few = min(cells, _CELLS)
    weights = sum(weight.numel() for weight in build(_CHANNELS, few).parameters())
    needed = _BYTES * weights * (channels / _CHANNELS) ** 2 * cells / few
    available = _memory(device)
    if needed > available:
        raise InputError(
            f"channels: {channels} in {cells} cells need about {needed / 2**30:.3g} GiB of memory for the weights "
            f"alone; {device.type} has {available / 2**30:.3g}"
        )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def memory_explained() -> Iterator[None]:
    """Turn failed allocations inside the block into InputError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        failed = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not failed:
            raise
        reason = str(error).partition("\n")[0] or "out of memory"
        raise InputError(
            f"not enough memory; lower batch_size, channels, cells, population or crop_padding may help: {reason:.200}"
        ) from error
