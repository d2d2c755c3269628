"""A soak: 2,000 search steps and 200 small searches in one process.

``python benchmarks/soak.py`` fails if memory grows by more than 2 %, if file handles or threads are left, or if steps
or searches become slower, by processor time. The first fifth of each is a warm-up, in which PyTorch and the kernels
allocate what they keep; the second fifth is compared with the last.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bionas_fast as bf
from bionas_fast.searching import Search

#: The largest growth of the memory, and of the processor time, from the second fifth to the last one.
MEMORY, TIME = 0.02, 0.10
SETTINGS = {
    "channels": 1,
    "cells": 1,
    "operations": ("skip_connect", "sep_conv_3x3", "max_pool_3x3"),
    "batch_size": 32,
    "warmup_epochs": 0,
}


@dataclass(frozen=True)
class Sample:
    """The state of the process after a piece of work.

    Attributes:
        memory: resident memory, in MiB, after the allocator has returned what is free.
        handles: open file handles.
        threads: threads of the process, also those that are not Python's.
        seconds: processor time of the piece.
    """

    memory: float
    handles: int
    threads: int
    seconds: float


def measured(work: Callable[[], object]) -> Sample:
    """Do a piece of work and look at the process."""
    before = time.process_time()
    work()
    seconds = time.process_time() - before
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps free is not held by the process's objects
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Sample(memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), seconds)


def search_steps(count: int, pieces: int = 50) -> list[Sample]:
    """Make steps of one search, which has as many epochs as they need; a sample after every ``count / pieces``."""
    search = Search(bf.SearchConfig(**SETTINGS, epochs=count))
    each = count // pieces

    def piece() -> None:
        for _ in range(each):
            if not search.steps_done:
                search.enter_epoch()
            search.step()
            if search.steps_done == len(search.phase.batches):
                search.end_epoch()
                # What a run records of every epoch grows with it.
                search.metrics.clear()
                search.genotypes.clear()
                for rows in search.alphas.values():
                    rows.clear()

    return [measured(piece) for _ in range(pieces)]


def searches(count: int, folder: Path) -> list[Sample]:
    """Search as users do, with a run folder and a report, one seed after the other."""
    config = bf.SearchConfig(**{**SETTINGS, "batch_size": 256}, epochs=1)
    return [
        measured(lambda seed=seed: bf.search(config.with_settings(seed=seed), out=folder / str(seed)))
        for seed in range(count)
    ]


def verdict(name: str, samples: list[Sample]) -> list[str]:
    """Print a line of results, and return what is wrong with them."""
    fifth = len(samples) // 5
    early, late = samples[fifth : 2 * fifth], samples[-fifth:]

    def median(part: list[Sample], value: str) -> float:
        return statistics.median(getattr(sample, value) for sample in part)

    growth = {value: median(late, value) / median(early, value) - 1 for value in ("memory", "seconds")}
    print(
        f"{name}: memory {median(early, 'memory'):.0f} → {median(late, 'memory'):.0f} MiB ({growth['memory']:+.1%}), "
        f"processor time {median(early, 'seconds'):.3f} → {median(late, 'seconds'):.3f} s ({growth['seconds']:+.1%}), "
        f"handles {early[0].handles} → {late[-1].handles}, threads {early[0].threads} → {late[-1].threads}",
        flush=True,
    )
    wrong = [
        f"{name}: {value} grows by {growth[value]:.1%}"
        for value, limit in (("memory", MEMORY), ("seconds", TIME))
        if growth[value] > limit
    ]
    for value in ("handles", "threads"):
        if getattr(late[-1], value) > getattr(early[0], value):
            wrong.append(f"{name}: {value} are left")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--searches", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = [
            *verdict(f"{given.steps:,} search steps", search_steps(given.steps)),
            *verdict(f"{given.searches} searches", searches(given.searches, Path(folder))),
        ]
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
