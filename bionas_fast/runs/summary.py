"""Summaries of runs, from the files of their folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bionas_fast.config import CONFIG
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import METRICS, RunFolder
from bionas_fast.runs.lock import is_locked

#: The metrics that may be the accuracy of a run, the decisive one first.
_ACCURACIES = ("test_accuracy", "valid_accuracy")


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
    """

    path: Path
    label: str
    dataset: str
    seed: int
    done: int
    epochs: int
    state: str
    accuracy: float | None

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
        accuracy = next((last[name] for name in _ACCURACIES if isinstance(last.get(name), float)), None)
        detail = " ".join(str(settings[name]) for name in ("method", "architecture", "rule") if name in settings)
        state = "complete" if len(metrics) >= epochs else "stopped"
        if state == "stopped" and is_locked(path):
            state = "running"
        label = f"{record.kind} {detail}".strip()
        return cls(path, label, dataset, seed, len(metrics), epochs, state, accuracy)


def find_runs(folder: Path) -> list[Path]:
    """Find the run folders directly in a folder, or the folder itself if it is one; in the order of their names.

    Raises:
        InputError: no such folder, or it cannot be read.
    """
    if os.path.isfile(folder / CONFIG):
        return [folder]
    try:
        return sorted(path for path in folder.iterdir() if os.path.isfile(path / CONFIG))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from None
