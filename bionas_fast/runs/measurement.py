"""Measurement of a run's steps and evaluations, by running a few of them on random images."""

from __future__ import annotations

import ctypes
import gc
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import torch

from bionas_fast.config import FILE_SETTINGS, RunConfig, Work
from bionas_fast.data import DatasetSize, memory, size_of
from bionas_fast.data.registry import logger
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime.isolation import exclusive, preserved_generator

#: Builds a trainer from its settings.
Build: TypeAlias = Callable[[Any], Trainer]

#: The time of a run of fewer steps is not measured before it begins.
_WORTHWHILE = 50
#: Seconds that a step of this measurement shall take at most, and the multiply-adds per second that are expected of a
#: processor to that end. Both are rough: where they are wrong, the measurement takes longer or is less exact.
_SHORT, _RATE = 0.5, 2e10
#: Batches of few images are multiples of this: images of few channels then fill the lanes of vectors as in whole ones.
FEW = 4


@dataclass(frozen=True)
class PhaseTimes:
    """Times of a phase, in seconds.

    Attributes:
        work: the work of the phase.
        once: before the first epoch.
        begin: before each epoch.
        step: of a training step.
        record: of what is recorded after an epoch.
        evaluation: of an evaluation.
    """

    work: Work
    once: float
    begin: float
    step: float
    record: float
    evaluation: float

    @property
    def seconds(self) -> float:
        """The time of the whole phase."""
        epoch = self.begin + self.work.steps * self.step + self.record
        return self.once + self.work.epochs * epoch + self.work.evaluations * self.evaluation

    def scaled(self, few: PhaseTimes, work: Work) -> PhaseTimes:
        """Extrapolate to more work, from this measurement and one with fewer images a step.

        The time of a step is a constant and a part in proportion to the images; of a single measurement, all of it.
        """
        images = self.work.batch_size

        def of_batch(name: str) -> float:
            time, less = getattr(self, name), getattr(few, name)
            slope = time / images
            if images > few.work.batch_size:
                slope = min(slope, max(0.0, (time - less) / (images - few.work.batch_size)))
            return time + slope * (work.batch_size - images)

        evaluated = work.evaluated / self.work.evaluated if self.work.evaluated else 1
        once = self.once * work.images / self.work.images
        return PhaseTimes(work, once, of_batch("begin"), of_batch("step"), self.record, self.evaluation * evaluated)


@dataclass(frozen=True)
class Measurement:
    """Times and memory of a few steps of a run.

    Attributes:
        batch_size: images per batch.
        device: where it ran.
        phases: the times of each phase.
        elapsed: seconds of all of it, without building the network.
        peak: bytes of memory.
        grown: of these, those of the run.
    """

    batch_size: int
    device: torch.device
    phases: list[PhaseTimes]
    elapsed: float
    peak: int
    grown: int


def time_left(trainer: Trainer, build: Build) -> float | None:
    """Measure how many seconds the rest of a run will take; None if that is not worth the measurement.

    Another run with its settings takes a few steps, so that this one is not changed.

    Args:
        trainer: the run.
        build: builds the other one.
    """
    config = trainer.config
    left = sum(phase.epochs * len(phase.batches) for phase in trainer.phases[trainer.phases.index(trainer.phase) :])
    left -= trainer.phase_epoch * len(trainer.phase.batches) + trainer.steps_done
    if left < _WORTHWHILE or getattr(config, "compile", False):  # compiling takes longer than many steps
        return None
    batch_size, size = config.batch_size, size_of(trainer.data)
    try:
        if trainer.device.type == "cpu":
            short = int(_SHORT * _RATE / max(1, 3 * trainer.operations()))
            batch_size = min(batch_size, max(FEW, short - short % FEW))
        found = measure(config, size, build, batch_size, steps=2)
    except Exception as error:  # the run meets it, too, and says where; or it is one of the measurement alone
        logger.debug("the time of the run was not measured: %r", error)
        return None
    seconds = 0.0
    works = config.work(size.images, size.test_images)
    for phase, times, work in zip(trainer.phases, found.phases, works, strict=True):
        share = 1.0
        if trainer.phases.index(phase) < trainer.phases.index(trainer.phase):
            share = 0.0
        elif phase is trainer.phase:
            share -= (trainer.phase_epoch + trainer.steps_done / len(phase.batches)) / phase.epochs
        seconds += share * times.scaled(times, work).seconds
    return seconds


def measure(config: RunConfig, size: DatasetSize, build: Build, batch_size: int, *, steps: int = 3) -> Measurement:
    """Run a few steps in the middle of each phase of a run, and an evaluation, in batches of ``batch_size`` images.

    Args:
        config: the settings of the run.
        size: the size of its dataset, whose images random ones stand for.
        build: builds its trainer from other settings.
        batch_size: the images per batch, at most as many as the run takes.
        steps: the number of steps after the first one, which is not counted.
    """
    with _unannounced():
        return _run(_shrunken(config, size, batch_size, steps), build, batch_size)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()


def _run(small: RunConfig, build: Build, batch_size: int) -> Measurement:
    _release()
    before = 0 if small.device != "cpu" and torch.cuda.is_available() else _resident()
    with exclusive(), preserved_generator():
        trainer = build(small)
    repetitions = trainer.shorten()
    watch = _Peak(trainer.device)
    started = time.perf_counter()
    phases = []
    size = size_of(trainer.data)
    for phase, work in zip(trainer.phases, small.work(size.images, size.test_images), strict=True):
        trainer.epoch += phase.epochs // 2  # what grows over the epochs is at its mean
        first = _timed(trainer.enter_epoch)
        begin = _timed(trainer.enter_epoch)
        once, begin = max(0.0, first - begin), repetitions * begin
        taken = [_timed(partial(_step, trainer)) for _ in range(work.steps)]
        evaluation = _timed(trainer.conclude)
        end = _timed(trainer.end_epoch)  # evaluates once more
        trainer.epoch += phase.epochs - phase.epochs // 2 - 1
        step, record = statistics.median(taken[1:]), max(0.0, end - evaluation)
        phases.append(PhaseTimes(work, once, begin, step, record, evaluation))
    elapsed, peak = time.perf_counter() - started, watch.read()
    return Measurement(batch_size, trainer.device, phases, elapsed, peak, peak - before)


def _step(trainer: Trainer) -> None:
    trainer.step()
    trainer.read()  # waits for a GPU


@contextmanager
def _unannounced() -> Iterator[None]:
    """Load the random images without a message."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _shrunken(config: RunConfig, size: DatasetSize, batch_size: int, steps: int) -> RunConfig:
    """Return the settings of a run in smaller batches, with as many images as are measured, all of them random."""
    changes: dict[str, Any] = {"data_dir": None, "download": False, "tensorboard": False}
    fields = type(config).model_fields
    changes |= {name: fields[name].default for name in FILE_SETTINGS if name in fields}
    for name in fields:
        value = getattr(config, name)
        if name.endswith("batch_size") and value is not None:
            changes[name] = min(value, max(2, ceil(value * batch_size / config.batch_size)))
    if hasattr(config, "warmup_epochs"):
        changes["warmup_epochs"] = 0
    if hasattr(config, "evaluate_every"):
        changes["evaluate_every"] = 1  # the measured epoch shall have an evaluation
    small = config.with_settings(**changes)
    images = batch_size
    while min(work.steps for work in small.work(images, images)) <= steps:
        images += batch_size
    form = "x".join(map(str, size.image))
    return small.with_settings(dataset=f"noise:{form},classes={size.num_classes},images={images}")


def _release() -> None:
    """Return unused memory to the system, so that the measured peak is that of what follows."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(name: str = "VmRSS") -> int:
    """Read the memory of this process in bytes, from a line of its status; without one, the most it ever had."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(line.split()[1])


class _Peak:
    """The largest memory in use since it was made: of the GPU, or of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # the peak is then that of the process, which is not less
            _CLEAR.write_text("5")

    def read(self) -> int:
        """Return the bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM")
