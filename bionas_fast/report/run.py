"""The content of a run folder, as the pages show it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bionas_fast.config import RunRecord
from bionas_fast.errors import InputError
from bionas_fast.evaluation import Evaluation
from bionas_fast.report.charts import check_alphas
from bionas_fast.runs.folder import ALPHAS, EVALUATION, GENOTYPE, GENOTYPES, LAYERS, METRICS, RunFolder
from bionas_fast.runs.summary import RunSummary, accuracy_of
from bionas_fast.space import Candidate, Genotype, Space
from bionas_fast.space.formats.located import located

#: Entries of the machine that describe the process instead.
_PROCESS = ("command", "date")


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """The content of a run folder; what the run has not written is empty or None.

    Attributes:
        path: the folder.
        record: settings and machine.
        summary: state, epochs and accuracy.
        metrics: one row per epoch.
        genotype: that of the search or the network.
        space: the candidates and edges that α belong to.
        alphas: for each kind of cell, [epochs + 1, edges, candidates] before the softmax.
        genotypes: those after every epoch of a search.
        layers: the rows of :func:`bionas_fast.analysis.record_layers`.
        evaluation: the trained network on the test images.
    """

    path: Path
    record: RunRecord
    summary: RunSummary
    metrics: Sequence[Mapping[str, Any]]
    genotype: Genotype | None
    space: Space | None
    alphas: Mapping[str, np.ndarray]
    genotypes: Sequence[Genotype]
    layers: Sequence[Mapping[str, Any]]
    evaluation: Evaluation | None

    @classmethod
    def read(cls, path: str | Path) -> ReportedRun:
        """Read a run folder, also of a run that is not complete.

        Raises:
            InputError: no run folder, or a damaged file.
        """
        folder = RunFolder.open(path)

        def has(name: str) -> bool:
            return os.path.isfile(folder.path / name)

        record = folder.read()
        genotype = Genotype.load(folder.path / GENOTYPE) if has(GENOTYPE) else None
        space: Space | None = None
        alphas: Mapping[str, np.ndarray] = {}
        # The genotype is written after α, and says which edges these belong to.
        if genotype is not None and has(ALPHAS):
            space, alphas = _read_alphas(folder.path / ALPHAS, str(record.settings.get("space")), genotype)
        return cls(
            path=folder.path,
            record=record,
            summary=RunSummary.read(folder.path),
            metrics=folder.read_metrics() if has(METRICS) else [],
            genotype=genotype,
            space=space,
            alphas=alphas,
            genotypes=_read_genotypes(folder) if has(GENOTYPES) else [],
            layers=folder.read_rows(LAYERS) if has(LAYERS) else [],
            evaluation=_read_evaluation(folder.path / EVALUATION) if has(EVALUATION) else None,
        )

    @property
    def searches(self) -> bool:
        """Whether the run is a search, not the training of a network."""
        return self.record.kind == "search"

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the result in percent; before the end, that of the last epoch."""
        # A limit on skip connections ends a search after the epoch that exceeds it; the genotype is that before.
        exceeded = self.record.settings.get("skip_limit") is not None and self.summary.state == "complete"
        early = self.searches and exceeded and 1 < self.summary.done < self.summary.epochs
        return accuracy_of(self.metrics[-2]) if early else self.summary.accuracy

    @property
    def title(self) -> str:
        """The name of what the run found or trained: the hash of a genotype, or a network with its rule."""
        return self.summary.label.partition(" ")[2] if self.genotype is None else self.genotype.hash

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if they have none."""
        network = self.record.network if isinstance(self.record.network, Mapping) else {}
        names = network.get("classes")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def machine(self) -> dict[str, Any]:
        """The machine and the versions of the run, as it recorded them."""
        return {name: value for name, value in self.record.machine.items() if name not in _PROCESS}

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, and the plugins."""
        return {**self.record.settings, "plugins": list(self.record.plugins)}


def _read_alphas(path: Path, name: str, genotype: Genotype) -> tuple[Space, dict[str, np.ndarray]]:
    """Read α with the space that they belong to.

    Raises:
        InputError: the file is damaged, or does not fit the genotype; an operation or rule that is not registered.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            words = [str(word) for word in stored["candidates"]]
            alphas = {kind: np.asarray(stored[kind], dtype=np.float64) for kind in genotype.cells}
    except Exception as error:  # on a damaged file, zipfile and numpy raise many types of exceptions
        raise InputError(f"{path} is damaged: {str(error) or type(error).__name__:.200}") from None
    candidates = tuple(map(Candidate.parse, words))
    nodes = max(len(cell.nodes) for cell in genotype.cells.values())
    space = Space(name, candidates, nodes, genotype.skeleton)
    try:
        check_alphas(alphas, space)
    except InputError as error:
        raise error.at(str(path)) from None
    return space, alphas


def _read_genotypes(folder: RunFolder) -> list[Genotype]:
    """Read the genotypes after every epoch.

    Raises:
        InputError: the file is damaged, or its genotypes have different kinds of cells.
    """
    found: list[Genotype] = []
    for number, row in enumerate(folder.read_rows(GENOTYPES), 1):
        place = f"{folder.path / GENOTYPES}, line {number}"
        if not isinstance(row, Mapping):
            raise InputError(f"{place}: expected an object")
        text = json.dumps({name: value for name, value in row.items() if name != "epoch"})
        found.append(located(place, Genotype.from_json, text))
        if found[-1].skeleton != found[0].skeleton:
            raise InputError(f"{place}: expected the same kinds of cells as in line 1")
    return found


def _read_evaluation(path: Path) -> Evaluation:
    try:
        return Evaluation.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # InputError is a ValueError
        raise InputError(f"{path}: {error}") from None
