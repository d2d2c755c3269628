"""The result of a search, at its end or read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bionas_fast.config import RunRecord
from bionas_fast.errors import InputError, expect_type
from bionas_fast.runs.folder import GENOTYPE, RunFolder
from bionas_fast.runs.summary import RunFacts
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.skip_limit import SkipLimit
from bionas_fast.space import Genotype

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The result of a search.

    Attributes:
        genotype: the architecture and learning rules that the search chose.
        run_dir: the run folder.
        metrics: one mapping per epoch.
        final_metrics: the metrics of the epoch from which the genotype is taken.
        messages: remarks needed to interpret the genotype, in sentences.
    """

    genotype: Genotype
    run_dir: Path
    metrics: list[dict[str, Any]]
    final_metrics: dict[str, Any]
    messages: tuple[str, ...]

    @classmethod
    def load(cls, run_dir: str | Path) -> SearchResult:
        """Read the result of a search from its folder, also of one that is not complete.

        Raises:
            InputError: no such folder, another kind of run, no epoch that is done, damaged files.
        """
        folder = RunFolder.open(run_dir)
        record = folder.read()
        found = cls.read(folder, record) if record.kind == "search" else None
        if found is None:
            what = "no epoch is done yet" if record.kind == "search" else f"a {record.kind} run, not a search"
            raise InputError(f"{folder.path}: {what}")
        return found

    @classmethod
    def read(cls, folder: RunFolder, record: RunRecord) -> SearchResult | None:
        """Read the result of a search; None before the end of its first epoch."""
        state, config = folder.read_checkpoint(), SearchConfig(**record.settings)
        limit = SkipLimit(config.skip_limit)
        limit.load_state_dict(state["limit"])
        rows = state["metrics"]
        if not rows:
            return None
        genotype = Genotype.load(folder.path / GENOTYPE)
        final = rows[-2 if limit.exceeded else -1]
        return cls(genotype, folder.path, rows, final, messages(config.cells, limit, genotype))

    @property
    def alphas(self) -> Mapping[str, np.ndarray]:
        """The architecture parameters before the softmax, for each kind of cell [epochs + 1, edges, candidates]."""
        from bionas_fast.report.run import ReportedRun  # slow to import

        return ReportedRun.read(self.run_dir).alphas

    @property
    def cost_of_robustness(self) -> str | None:
        """The share of the time that robust search spent on perturbed images; None without robust search."""
        if not any("robustness_seconds" in row for row in self.metrics):
            return None
        spent = sum(row["robustness_seconds"] for row in self.metrics)
        return f"{100 * spent / sum(row['seconds'] for row in self.metrics):.0f} % of the time"

    @property
    def facts(self) -> RunFacts:
        """The facts of the search for its report."""
        cost = self.cost_of_robustness
        figures = {"validation accuracy of the supernet": f"{self.final_metrics['valid_accuracy']:.2f} %"}
        return RunFacts(figures | ({"robust search": cost} if cost else {}), notes=self.messages)

    def plot(self, by: str = "rule") -> Figure:
        """Draw the course of the shares of α.

        Args:
            by: one panel for each ``rule`` or ``operation``.

        Raises:
            InputError: another ``by``.
        """
        from bionas_fast.report.charts import operations_figure, rules_figure  # slow to import
        from bionas_fast.report.run import ReportedRun

        expect_type("by", by, str)
        if by not in ("rule", "operation"):
            raise InputError(f"by: expected 'rule' or 'operation', got {by!r}")
        run = ReportedRun.read(self.run_dir)
        assert run.space is not None
        return (rules_figure if by == "rule" else operations_figure)(run.alphas, run.space)

    def __repr__(self) -> str:
        accuracy = f"{self.final_metrics['valid_accuracy']:.2f} %"
        return f"SearchResult({self.genotype!r}, supernet {accuracy} after {len(self.metrics)} epochs, {self.run_dir})"

    def _repr_html_(self) -> str | None:
        return self.genotype._repr_html_()


def messages(cells: int, limit: SkipLimit, genotype: Genotype) -> tuple[str, ...]:
    """Return the remarks needed to interpret a genotype of a search with this number of cells."""
    sequence = genotype.skeleton.sequence(cells)
    arbitrary = [
        f"cells={cells}: the network has no {kind} cell, so the genotype's {kind} cell is arbitrary"
        for kind in genotype.cells
        if kind not in sequence
    ]
    remark = limit.message(genotype)
    return (*arbitrary, *([remark] if remark else []))
