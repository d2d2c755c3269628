"""Estimates of what a run costs on this machine: size, steps, time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bionas_fast.config import RunConfig
from bionas_fast.data import dataset_size, memory
from bionas_fast.errors import InputError, expect_type
from bionas_fast.models import NetworkSize, measure_size
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.measurement import FEW, free_memory, measure
from bionas_fast.runs.terminal import duration
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime.machine import machine
from bionas_fast.space import Genotype
from bionas_fast.training.genotype import Training

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

    sizes: list[NetworkSize] = []

    def build(small: Any) -> Trainer:
        trainer = trainer_class(small) if genotype is None else Training(genotype, small)
        sizes.append(measure_size(getattr(trainer, "trained", trainer.net), size.image))
        return trainer

    size = dataset_size(config)
    works = config.work(size.images, size.test_images)
    first = sample = measure(config, size, build, min(FEW, config.batch_size))
    in_time = max(2.0, seconds / first.elapsed) * first.batch_size
    in_memory = _SHARE * free_memory(first.device) / max(first.grown, 1) * first.batch_size
    batch_size = int(min(config.batch_size, in_time, in_memory))
    if batch_size < config.batch_size:
        batch_size -= batch_size % FEW  # images of few channels fill the lanes of vectors, as in whole batches
    if batch_size > first.batch_size:
        sample = measure(config, size, build, batch_size)
    growth = (sample.peak - first.peak) / max(1, sample.batch_size - first.batch_size)
    phases = [phase.scaled(few, work) for phase, few, work in zip(sample.phases, first.phases, works, strict=True)]
    longest = max(phases, key=lambda phase: phase.seconds)
    return Estimate(
        kind=trainer_class.kind,
        size=sizes[-1],
        steps=sum(work.epochs * work.steps for work in works),
        seconds=sum(phase.seconds for phase in phases),
        step_seconds=longest.step,
        batch_size=longest.work.taken,
        measured=sample.phases[phases.index(longest)].work.taken,
        memory=int(sample.peak + max(0.0, growth) * (config.batch_size - sample.batch_size)),
    )
