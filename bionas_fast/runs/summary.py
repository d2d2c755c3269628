"""Summaries of runs, from the files of their folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bionas_fast.config import CONFIG, Duration
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import METRICS, REPORT, RunFolder
from bionas_fast.runs.lock import is_locked

#: The metrics that may be the accuracy of a run, the decisive one first.
_ACCURACIES = ("test_accuracy", "valid_accuracy")
#: Runs repeated over seeds are in FOLDER/VARIANT/seed-N.
_DEPTH = 3


@dataclass(frozen=True)
class RunFacts:
    """Facts about the result of a run that its report cannot read from files.

    Attributes:
        lines: names and values for people.
        shares: the share of the weights of the network that learn by each rule, in [0, 1]; empty without a network.
        notes: remarks needed to interpret the result, in sentences.
        edges: for every edge of a genotype that a search found, a row: its candidate, and by how much it leads.
        leads: for every edge of that genotype, the weight of its candidate over that of the next one.
    """

    lines: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    edges: Sequence[Mapping[str, Any]] = ()
    leads: Sequence[float] = ()


NO_FACTS = RunFacts()


@dataclass(frozen=True)
class RunSummary:
    """The summary of a run.

    Attributes:
        path: its folder.
        label: kind of run, and what distinguishes it: the search method, or the network and its rule.
        dataset: name of the dataset.
        seed: the seed.
        done, epochs: how many epochs are done, and how many there are; of a run in phases, those with metrics.
        state: ``complete``, ``running`` or ``stopped``.
        accuracy: the last accuracy, in percent: on the test images, or for a search on its validation images.
        duration: its time up to the last checkpoint; None if not recorded.
    """

    path: Path
    label: str
    dataset: str
    seed: int
    done: int
    epochs: int
    state: str
    accuracy: float | None
    duration: Duration | None = None

    @classmethod
    def read(cls, path: Path) -> RunSummary:
        """Summarise the run in a folder.

        Raises:
            InputError: there is no run, or its files are damaged.
        """
        folder = RunFolder.open(path)
        record = folder.read()
        settings = record.settings
        metrics = folder.read_metrics() if os.path.isfile(path / METRICS) else []
        try:
            epochs, seed, dataset = int(settings["epochs"]), int(settings["seed"]), str(settings["dataset"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{record.path}: expected the settings epochs, seed and dataset") from None
        last = metrics[-1] if metrics else {}
        detail = " ".join(str(settings[name]) for name in ("method", "architecture", "rule") if name in settings)
        # A search that ends early has a report, too.
        complete = len(metrics) >= epochs or os.path.isfile(path / REPORT)
        state = "complete" if complete else "stopped"
        if state == "stopped" and is_locked(path):
            state = "running"
        label = f"{record.kind} {detail}".strip()
        return cls(path, label, dataset, seed, len(metrics), epochs, state, accuracy_of(last), record.duration)


def accuracy_of(row: Mapping[str, Any]) -> float | None:
    """Return the accuracy in a row of metrics, in percent: on the test images, or else on the validation images."""
    return next((row[name] for name in _ACCURACIES if isinstance(row.get(name), float)), None)


def find_runs(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """Find the run folders in a folder and up to ``depth`` levels below, in the order of their names.

    A run folder contains no others; if ``folder`` is one, it is the only one.

    Raises:
        InputError: no such folder, or it cannot be read.
    """
    if os.path.isfile(folder / CONFIG):
        return [folder]
    try:
        below = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and os.path.isdir(path))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from None
    if depth == 1:
        return [path for path in below if os.path.isfile(path / CONFIG)]
    return [run for path in below if os.access(path, os.R_OK | os.X_OK) for run in find_runs(path, depth - 1)]
