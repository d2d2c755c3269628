"""Estimates of what a run costs on this machine: size, steps, time and memory."""

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
from typing import Any

import torch

from bionas_fast.config import FILE_SETTINGS, RunConfig, Work
from bionas_fast.data import dataset_size, memory
from bionas_fast.data.registry import logger
from bionas_fast.errors import InputError, expect_type
from bionas_fast.models import NetworkSize, measure_size
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.terminal import duration
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime.machine import machine
from bionas_fast.space import Genotype
from bionas_fast.training.genotype import Training

#: Images per batch of the first measurement.
_FIRST = 4
#: Steps measured, after one that is not.
_STEPS = 3
#: The share of the free memory that a measurement may take.
_SHARE = 0.5


@dataclass(frozen=True)
class Estimate:
    """The cost of a run.

    Attributes:
        kind: the kind of run.
        size: the size of its network, or of its supernet.
        steps: training steps of all epochs and phases.
        seconds: time of the run on this machine, with the evaluations after every epoch; extrapolated from a few steps.
        step_seconds: time of a training step, in the phase that takes longest.
        batch_size: images per step in that phase.
        measured: images per step that were measured; if these are fewer, the time of a step is extrapolated.
        memory: bytes that the process needs, or on a GPU its tensors; extrapolated to the batch.
    """

    kind: str
    size: NetworkSize
    steps: int
    seconds: float
    step_seconds: float
    batch_size: int
    measured: int
    memory: int

    def lines(self) -> dict[str, str]:
        """Format the estimate as names and values for people."""
        now = machine()
        place = now["accelerator"] if now["accelerator"] != "none" else f"CPU threads: {now['threads']}"
        part = f", measured with {self.measured}" if self.measured < self.batch_size else ""
        fits = "" if self.memory < memory.available() else ", more than is free here"
        size = self.size.lines()
        if not get_kind(self.kind).trains_network:
            del size["weights by rule"]  # a supernet has them all
        return {
            **size,
            "steps": f"{self.steps:,}",
            "step": f"about {duration(self.step_seconds)} for {self.batch_size} images{part}",
            "time": f"about {duration(self.seconds)} on this machine ({place})",
            "memory": f"about {self.memory / 1e9:.1f} GB{fits}",
        }


def steps(config: RunConfig) -> int:
    """Count the training steps of a run; a dataset of unknown size is loaded."""
    size = dataset_size(config)
    return sum(work.epochs * work.steps for work in config.work(size.images, size.test_images))


def estimate(config: RunConfig, genotype: Genotype | None = None, *, seconds: float = 30.0) -> Estimate:
    """Estimate what a run costs on this machine: run a few of its steps, on random images in the form of its dataset.

    Measured are training steps in the middle of the run, and an evaluation. If the batches of the run would take more
    than ``seconds``, or half of the free memory, smaller ones are measured. Warm-up epochs of a search count like
    others, reading of files and checkpoints not at all.

    Args:
        config: the settings of the run.
        genotype: the genotype of a training.
        seconds: time for the measurement, without building the network; the first batch of few images may exceed it.

    Raises:
        InputError: a training without its genotype, settings that the run would refuse, too little memory.
    """
    expect_type("config", config, RunConfig, "such as bf.SearchConfig(), or presets.get(NAME).settings in one")
    kind = next(kind for kind in map(get_kind, kind_names()) if kind.settings is type(config))
    trainer_class: Any = kind.trainer
    if (trainer_class is Training) != (genotype is not None):
        raise InputError(f"genotype: a {trainer_class.kind} takes {'one' if trainer_class is Training else 'none'}")

    def build(small: Any) -> Trainer:
        return trainer_class(small) if genotype is None else Training(genotype, small)

    size = dataset_size(config)
    works = config.work(size.images, size.test_images)
    first = sample = _measure(config, build, min(_FIRST, config.batch_size))
    in_time = max(2.0, seconds / first.elapsed) * first.batch_size
    in_memory = _SHARE * _free(first.device) / max(first.grown, 1) * first.batch_size
    batch_size = int(min(config.batch_size, in_time, in_memory))
    if batch_size < config.batch_size:
        batch_size -= batch_size % _FIRST  # images of few channels fill the lanes of vectors, as in whole batches
    if batch_size > first.batch_size:
        sample = _measure(config, build, batch_size)
    growth = (sample.peak - first.peak) / max(1, sample.batch_size - first.batch_size)
    phases = [phase.scaled(few, work) for phase, few, work in zip(sample.phases, first.phases, works, strict=True)]
    longest = max(phases, key=lambda phase: phase.seconds)
    return Estimate(
        kind=trainer_class.kind,
        size=sample.size,
        steps=sum(work.epochs * work.steps for work in works),
        seconds=sum(phase.seconds for phase in phases),
        step_seconds=longest.step,
        batch_size=longest.work.batch_size,
        measured=sample.phases[phases.index(longest)].work.batch_size,
        memory=int(sample.peak + max(0.0, growth) * (config.batch_size - sample.batch_size)),
    )


@dataclass(frozen=True)
class _Phase:
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

    def scaled(self, few: _Phase, work: Work) -> _Phase:
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
        return _Phase(work, once, of_batch("begin"), of_batch("step"), self.record, self.evaluation * evaluated)


@dataclass(frozen=True)
class _Sample:
    size: NetworkSize
    batch_size: int
    device: torch.device
    phases: list[_Phase]
    elapsed: float
    peak: int  # bytes of memory
    grown: int  # of these, those of the run


def _measure(config: RunConfig, build: Callable[[RunConfig], Trainer], batch_size: int) -> _Sample:
    """Run a few steps of each phase with batches of ``batch_size`` images."""
    with _unannounced():
        return _run(_shrunken(config, batch_size), build, batch_size)


def _run(small: RunConfig, build: Callable[[RunConfig], Trainer], batch_size: int) -> _Sample:
    size = dataset_size(small)
    _release()
    before = 0 if small.device != "cpu" and torch.cuda.is_available() else _resident()
    trainer = build(small)
    network = getattr(trainer, "trained", trainer.net)
    found = measure_size(network, size.image)
    watch = _Peak(trainer.device)
    started = time.perf_counter()
    phases = []
    for phase, work in zip(trainer.phases, small.work(size.images, size.test_images), strict=True):
        trainer.epoch += phase.epochs // 2  # what grows over the epochs is at its mean
        first = _timed(trainer.enter_epoch)
        begin = _timed(trainer.enter_epoch)
        taken = [_timed(partial(_step, trainer)) for _ in range(work.steps)]
        evaluation = _timed(trainer.conclude)
        end = _timed(trainer.end_epoch)  # evaluates once more
        trainer.epoch += phase.epochs - phase.epochs // 2 - 1
        step, record = statistics.median(taken[1:]), max(0.0, end - evaluation)
        phases.append(_Phase(work, max(0.0, first - begin), begin, step, record, evaluation))
    elapsed, peak = time.perf_counter() - started, watch.read()
    return _Sample(found, batch_size, trainer.device, phases, elapsed, peak, peak - before)


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


def _shrunken(config: RunConfig, batch_size: int) -> RunConfig:
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
    while min(work.steps for work in small.work(images, images)) <= _STEPS:
        images += batch_size
    size = dataset_size(config)
    form = "x".join(map(str, size.image))
    return small.with_settings(dataset=f"noise:{form},classes={size.num_classes},images={images}")


def _release() -> None:
    """Return unused memory to the system, so that the measured peak is that of what follows."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()


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
