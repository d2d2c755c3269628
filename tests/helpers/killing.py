"""Runs of the command line that are killed or interrupted, in forked children of one process; what they know."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

from helpers import forking

#: A dataset made for this: so small that an epoch takes a fraction of a second.
DATASET = "specks"
#: A space with cells of 5 edges, not 14.
SPACE = "two-nodes"


class Runner(forking.Runner):
    """The process that forks, which knows the small dataset and the small space.

    Words that its calls take besides ``cwd`` and ``signals``:
        signal_at_step: ``(step, number, …)``: the process sends itself these within that step, counted from 1.
        kill_at_write: the write at which the process kills itself, counted in thirds from 0: half-written, whole
            but not in place, in place.
        file_limit: the largest file that can be written, in bytes.
        ordinary: the process gives up the privileges of root, which may read and write everywhere.
    """

    def __init__(self) -> None:
        super().__init__(__name__)


def _prepare(
    signal_at_step: tuple[int, ...] | None = None,
    kill_at_write: int | None = None,
    file_limit: int | None = None,
    ordinary: bool = False,
) -> None:
    import resource

    if signal_at_step is not None:
        _signal_at_step(*signal_at_step)
    if kill_at_write is not None:
        _die_at_write(kill_at_write)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if ordinary and os.getuid() == 0:
        _without_capabilities()


def _without_capabilities() -> None:
    """Still root, and the owner of its files, but bound by their permissions (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset failed")


def _signal_at_step(last: int, *numbers: int) -> None:
    from bionas_fast.runs.trainer import Trainer

    done = 0
    step = Trainer.step

    def signalling(self: Trainer) -> float | None:
        nonlocal done
        done += 1
        if done == last:
            for number in numbers:
                os.kill(os.getpid(), number)
        return step(self)

    Trainer.step = signalling  # type: ignore[method-assign]


def _die_at_write(last: int) -> None:
    """Have this process kill itself at a moment of its choice."""
    done = 0
    fsync, replace = os.fsync, os.replace

    def moment() -> bool:
        nonlocal done
        done += 1
        return done > last

    def half_written(file: int) -> None:
        if moment():
            os.truncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    def moved(source: Path, target: Path) -> None:
        if moment():
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if moment():
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = half_written, moved  # type: ignore[assignment]


def specks(data_dir: Path | None, *, download: bool, seed: int) -> Any:
    import torch

    from bionas_fast.data import Dataset

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 4
    images = torch.rand(96, 1, 6, 6, generator=generator) * (1 + labels.view(-1, 1, 1, 1)) / 4
    return Dataset.from_tensors(DATASET, (images[:64], labels[:64]), (images[64:], labels[64:]))


def two_nodes() -> Any:
    from bionas_fast.space import get_space

    return dataclasses.replace(get_space("bionas"), nodes=2)


def register() -> None:
    """Register the small dataset and the small space in this process."""
    from bionas_fast.data import register_dataset
    from bionas_fast.space import register_space

    register_dataset(DATASET)(specks)
    register_space(SPACE)(two_nodes)


def _serve() -> None:
    register()
    forking.serve(_prepare)


if __name__ == "__main__":
    _serve()
