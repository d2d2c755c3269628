"""Measurement of a run's steps and evaluations, by running a few of them on random images."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import torch

from bionas_fast.config import FILE_SETTINGS, RunConfig, Work
from bionas_fast.data import DatasetSize, memory, size_of
from bionas_fast.data.registry import logger, unannounced
from bionas_fast.errors import InputError
from bionas_fast.nn.mirroring import mirror
from bionas_fast.runs.trainer import Phase, Trainer
from bionas_fast.runtime.graphs import WARM_UP as CAPTURED_AFTER
from bionas_fast.runtime.isolation import exclusive, preserved_generator

#: Builds a trainer from its settings.
Build: TypeAlias = Callable[[Any], Trainer]

#: The time of a run of fewer steps is not measured before it begins.
_WORTHWHILE = 50
#: Seconds that a step of this measurement shall take at most, and the multiply-adds per second that are expected of a
#: processor to that end. Both are rough: where they are wrong, the measurement takes longer or is less exact.
_SHORT, _RATE = 0.5, 2e10
#: Seconds from which a beginning of an epoch, or a record, is not measured again, warm; the steps of a pause that are
#: measured.
_LONG, _MIRRORED = 1.0, 2
#: Batches of few images are multiples of this: images of few channels then fill the lanes of vectors as in whole ones.
FEW = 4


@dataclass(frozen=True)
class PhaseTimes:
    """Times of a phase, in seconds.

    Attributes:
        work: the work of the phase.
        once: before the first epoch, a pass over all training images.
        begin: before each epoch, on a batch, on average over the epochs.
        step: of a training step, on average over the epochs.
        further: of all else in the phase, which does not depend on the number of images.
        evaluation: of an evaluation.
    """

    work: Work
    once: float
    begin: float
    step: float
    further: float
    evaluation: float

    @property
    def seconds(self) -> float:
        """The time of the whole phase."""
        epochs = self.work.epochs * (self.begin + self.work.steps * self.step)
        return self.once + epochs + self.further + self.work.evaluations * self.evaluation

    def scaled(self, few: PhaseTimes, work: Work) -> PhaseTimes:
        """Extrapolate to more work, from this measurement and one with fewer images a step.

        The time of a step is a constant and a part in proportion to the images; of a single measurement, all of it.
        """
        images, less_images = self.work.taken, few.work.taken

        def of_batch(name: str) -> float:
            time, less = getattr(self, name), getattr(few, name)
            slope = time / images
            if images > less_images:
                slope = min(slope, max(0.0, (time - less) / (images - less_images)))
            return time + slope * (work.taken - images)

        evaluated = work.evaluated / self.work.evaluated if self.work.evaluated else 1
        once = self.once * work.images / self.work.images
        return PhaseTimes(work, once, of_batch("begin"), of_batch("step"), self.further, self.evaluation * evaluated)


@dataclass(frozen=True)
class Measurement:
    """Times and memory of a few steps of a run.

    Attributes:
        batch_size: images per batch.
        device: where it ran.
        phases: the times of each phase.
        elapsed: seconds of all of it, without building the network.
        peak: bytes of memory; 0 if it was not measured.
        grown: of these, those of the run.
    """

    batch_size: int
    device: torch.device
    phases: list[PhaseTimes]
    elapsed: float
    peak: int
    grown: int


def time_left(trainer: Trainer, build: Build, stopped: Callable[[], bool] = lambda: False) -> float | None:
    """Measure how many seconds the rest of a run will take; None if that is not worth the measurement.

    Another run with its settings takes a few steps, so that this one is not changed.

    Args:
        trainer: the run.
        build: builds the other one.
        stopped: whether the run was asked to stop, which ends the measurement.
    """
    config, now = trainer.config, trainer.phases.index(trainer.phase)
    left = sum(phase.epochs * len(phase.batches) for phase in trainer.phases[now:])
    left -= trainer.phase_epoch * len(trainer.phase.batches) + trainer.steps_done
    if left < _WORTHWHILE or getattr(config, "compile", False):  # compiling takes longer than many steps
        return None
    try:
        batch_size, size = config.batch_size, size_of(trainer.data)
        if trainer.device.type == "cpu":
            short = int(_SHORT * _RATE / max(1, 3 * trainer.operations()))
            batch_size = min(batch_size, max(FEW, short - short % FEW))
        found = measure(config, size, build, batch_size, steps=2, memory=False, stopped=stopped)
        works = config.work(size.images, size.test_images)
        phases = [own.scaled(own, work) for own, work in zip(found.phases, works, strict=True)][now:]
    except Exception as error:  # the run meets it, too, and says where; or it is one of the measurement alone
        logger.debug("the time of the run was not measured: %r", error)
        return None
    # What a phase begins with is not part of a checkpoint.
    done = (trainer.phase_epoch + trainer.steps_done / len(trainer.phase.batches)) / max(1, trainer.phase.epochs)
    return sum(own.seconds for own in phases) - done * (phases[0].seconds - phases[0].once)


def measure(
    config: RunConfig,
    size: DatasetSize,
    build: Build,
    batch_size: int,
    *,
    steps: int = 3,
    memory: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> Measurement:
    """Run a few steps in the middle of each phase of a run, and an evaluation, in batches of ``batch_size`` images.

    Args:
        config: the settings of the run.
        size: the size of its dataset, whose images random ones stand for.
        build: builds its trainer from other settings.
        batch_size: the images per batch, at most as many as the run takes.
        steps: the number of steps that are counted.
        memory: whether to measure the memory, too.
        stopped: asked between the steps; when it is true, the measurement ends.

    Raises:
        InputError: it was stopped.
    """
    on_cuda = config.device != "cpu" and torch.cuda.is_available()
    most = (CAPTURED_AFTER + 1 if on_cuda else 1) + steps  # the first ones are longer
    small = _shrunken(config, size, batch_size, most)
    if memory:
        _release()
    before = _resident() if memory and not on_cuda else 0
    with unannounced(), exclusive(), preserved_generator():
        trainer = build(small)
    watch = _Peak(trainer.device) if memory else None
    started = time.perf_counter()
    own = size_of(trainer.data)
    works = small.work(own.images, own.test_images)
    phases = [
        _of_phase(config, trainer, phase, work, (most, steps), stopped)
        for phase, work in zip(trainer.phases, works, strict=True)
    ]
    elapsed, peak = time.perf_counter() - started, watch.read() if watch else 0
    return Measurement(batch_size, trainer.device, phases, elapsed, peak, peak - before)


def _of_phase(
    config: RunConfig, trainer: Trainer, phase: Phase, work: Work, steps: tuple[int, int], stopped: Callable[[], bool]
) -> PhaseTimes:
    """Measure a phase after all earlier ones, and end it; ``steps`` are those to take, and those of them to count."""

    def timed(call: Callable[[], Any]) -> float:
        if stopped():
            raise InputError("the measurement was stopped")
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    def step() -> float:
        most, counted = steps
        taken = [timed(partial(_step, trainer)) for _ in range(min(work.steps, most))]
        return statistics.median(taken[-counted:])

    first, light = trainer.epoch, trainer.light_epochs / phase.epochs
    light_step = 0.0
    if light:
        trainer.enter_epoch()
        light_step = step()
        trainer.end_epoch()
    # What grows over the epochs is at its mean; decisions of a projection, in the last ones, are not measured.
    last = phase.epochs - getattr(config, "projection_epochs", 0) - 1
    trainer.epoch = first + min(max(phase.epochs // 2, trainer.light_epochs), last)
    repetitions = trainer.shorten()
    begin = timed(trainer.enter_epoch)
    once = begin if trainer.begins_with_images else 0.0
    if repetitions and begin < _LONG:
        begin = timed(trainer.enter_epoch)  # warm
    mean_step = light * light_step + (1 - light) * step()
    with trainer.isolated_rng():
        trainer.conclude()
        record = timed(trainer.record)
        if record < _LONG:
            record = timed(trainer.record)
    evaluation = max(0.0, timed(trainer.end_epoch) - record)  # records and evaluates, now warm
    trainer.epoch = first + phase.epochs
    records, pauses = (
        -(-phase.epochs // every) if (every := getattr(config, name, 0)) else 0
        for name in ("record_layers", "mirror_every")
    )
    pause = 0.0
    if pauses:
        pause = timed(lambda: mirror(trainer.net, _MIRRORED)) * getattr(config, "mirror_steps", 0) / _MIRRORED
    mean_begin = (1 - light) * repetitions * begin
    return PhaseTimes(work, once, mean_begin, mean_step, records * record + pauses * pause, evaluation)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()


def _step(trainer: Trainer) -> None:
    trainer.step()
    trainer.read()  # waits for a GPU


def _shrunken(config: RunConfig, size: DatasetSize, batch_size: int, steps: int) -> RunConfig:
    """Return the settings of a run in smaller batches, with as many images as are measured, all of them random."""
    fields = {name for name in type(config).model_fields if getattr(config, name) is not None}
    changes: dict[str, Any] = {"data_dir": None, "download": False, "tensorboard": False}
    changes |= {name: type(config).model_fields[name].default for name in FILE_SETTINGS if name in fields}
    share = batch_size / config.batch_size
    for name in fields:
        if name.endswith("batch_size"):
            value = getattr(config, name)
            changes[name] = min(value, max(FEW, ceil(value * share)))
    if "accumulate" in fields:
        changes["accumulate"] = max(1, round(getattr(config, "accumulate", 1) * share))
    if "mirror_every" in fields:
        changes["mirror_every"] = 0  # pauses are measured by themselves
    # The measured epoch shall have all that some have.
    changes |= {name: 1 for name in ("evaluate_every", "record_layers") if getattr(config, name, 0)}
    small = config.with_settings(**changes)
    images = batch_size
    parts = [bool(work.evaluated) for work in config.work(size.images, size.test_images)]
    while any(
        work.steps < steps or (evaluated and not work.evaluated)
        for work, evaluated in zip(small.work(images, images), parts, strict=True)
    ):
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
