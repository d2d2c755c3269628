"""Worker processes that read images from files: :func:`load`."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from bionas_fast.errors import InputError

#: By default no more worker processes than this are started.
MOST_WORKERS = 16

Asked = TypeVar("Asked", contravariant=True)
Read = TypeVar("Read", covariant=True)
Order = TypeVar("Order")
Found = TypeVar("Found")


class Reader(Protocol[Asked, Read]):
    """Reads what an order asks for, in a worker process."""

    def read(self, order: Asked) -> Read:
        """Read images.

        Raises:
            InputError: one cannot be read; the message names its file.
        """


def default_workers() -> int:
    """Return the number of worker processes for this process: one per core, at most :data:`MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def load(
    reader: Reader[Order, Found], orders: Iterable[Order], workers: int, device: torch.device | str = "cpu"
) -> Iterator[Found]:
    """Read every order, ahead of its use and in turn.

    Args:
        reader: sent to each worker.
        orders: what to read.
        workers: number of processes; 0 reads in this one.
        device: the device to which results move next; for a GPU, tensors are in pinned memory.

    Raises:
        InputError: as of the reader; a worker process ended.
    """
    loader: DataLoader[Any] = DataLoader(
        _Caught(reader),  # type: ignore[arg-type]
        sampler=orders,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # it would draw from PyTorch's
    )
    running = [iter(loader)]
    # Before multiprocessing ends its processes by SIGTERM, which workers ignore.
    atexit.register(running.clear)
    try:
        while (found := next(running[0], None)) is not None:
            if isinstance(found, str):
                raise InputError(found)
            yield found
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"workers: a process that reads images has ended: {reason:.200}") from error
    finally:
        running.clear()
        atexit.unregister(running.clear)


class _Caught:
    """A reader as DataLoader wants it, which returns the message of an error.

    As an exception it would arrive as the text of a traceback.
    """

    def __init__(self, reader: Reader[Any, Any]) -> None:
        self.reader = reader

    def __getitem__(self, order: Any) -> Any:
        try:
            return self.reader.read(order)
        except InputError as error:
            return str(error)


def _unchanged(found: Any) -> Any:
    return found


def _begin_worker(number: int) -> None:
    # Ctrl-C and SIGTERM reach all processes of a group; the run finishes its step, for which it needs its workers.
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, signal.SIG_IGN)
