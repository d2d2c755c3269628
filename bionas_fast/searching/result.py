"""The result of a search, at its end or read from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bionas_fast.config import RunRecord
from bionas_fast.data import DataShape
from bionas_fast.errors import InputError, expect_type
from bionas_fast.models import build_network, measure_size
from bionas_fast.runs.folder import GENOTYPE, RunFolder
from bionas_fast.runs.summary import RunFacts
from bionas_fast.runtime.isolation import exclusive, ordinary_modes
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.names import get_method, method_names
from bionas_fast.searching.skip_limit import SkipLimit
from bionas_fast.space import Decision, Genotype, Space, get_space, space_names

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
        decision: how far the search has decided: the lead on every edge, and the epochs since the last change.
        messages: remarks needed to interpret the genotype, in sentences.
    """

    genotype: Genotype
    run_dir: Path
    metrics: list[dict[str, Any]]
    final_metrics: dict[str, Any]
    decision: Decision
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
        last = -2 if limit.exceeded else -1
        alphas = {kind: own[last].numpy() for kind, own in state["alphas"].items()}
        # Those of a plugin that is not imported here are unknown.
        known = config.space in space_names() and config.method in method_names()
        space = get_space(config.space).restricted(config.rules, config.operations) if known else None
        decision = decided(config, space, genotype, alphas, rows[: len(rows) + 1 + last])
        return cls(genotype, folder.path, rows, rows[last], decision, messages(config, limit, genotype, decision))

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

    def facts(self, config: SearchConfig, shape: DataShape) -> RunFacts:
        """Return the facts of the search for its report, with the size of the genotype network.

        Args:
            config: the settings of the search, whose cells and channels the network has.
            shape: the data.
        """
        cost, decision = self.cost_of_robustness, self.decision
        lines = {"validation accuracy of the supernet": f"{self.final_metrics['valid_accuracy']:.2f} %"}
        if decision.leads:
            lines["edges that lead by 10 % or more"] = f"{decision.decided} of {len(decision.leads)}"
        lines["last epochs with this genotype"] = f"{decision.stable} of {decision.epochs}"
        if cost:
            lines["robust search"] = cost
        with ordinary_modes(), exclusive():
            network = build_network(
                self.genotype,
                channels=config.channels,
                cells=config.cells,
                num_classes=shape.num_classes,
                in_channels=shape.in_channels,
            )
            size = measure_size(network, (shape.in_channels, *shape.image_size))
        lines["parameters of the genotype network"] = f"{size.parameters:,}"
        lines["multiply-adds per image"] = size.count
        return RunFacts(lines, size.shares, self.messages, self._edges(), decision.ratios)

    def _edges(self) -> list[dict[str, Any]]:
        """Return the lead on every edge, as the report shows it."""
        from bionas_fast.report.layout import cell_title  # slow to import

        inputs = len(self.genotype.skeleton.input_names)
        return [
            {
                "edge": f"{cell_title(lead.kind)}: {lead.source} → {inputs + lead.node}",
                "candidate": str(lead.candidate),
                "softmax(α) %": f"{100 * lead.weight:.2f}",
                "next": str(lead.second),
                "softmax(α) % of the next": f"{100 * lead.second_weight:.2f}",
                "ratio": f"{lead.ratio:.3f}",
            }
            for lead in self.decision.leads
        ]

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


def decided(
    config: SearchConfig,
    space: Space | None,
    genotype: Genotype,
    alphas: Mapping[str, np.ndarray],
    rows: Sequence[Mapping[str, Any]],
) -> Decision:
    """Return how far a search has decided after the epochs of these rows of metrics; without a space, no leads."""
    hashes = [row["genotype"] for row in rows]
    if space is None or config.projection_epochs or not get_method(config.method).from_alphas:
        return Decision.of(genotype, hashes)
    return Decision.of(genotype, hashes, space, alphas)


def messages(config: SearchConfig, limit: SkipLimit, genotype: Genotype, decision: Decision) -> tuple[str, ...]:
    """Return the remarks needed to interpret a genotype."""
    sequence = genotype.skeleton.sequence(config.cells)
    arbitrary = [
        f"cells={config.cells}: the network has no {kind} cell, so the genotype's {kind} cell is arbitrary"
        for kind in genotype.cells
        if kind not in sequence
    ]
    undecided = (
        f"undecided: on {len(decision.leads) - decision.decided} of {len(decision.leads)} edges the chosen candidate "
        "leads the next by less than 10 %, so that another seed chooses others; more epochs or a larger learning rate "
        "of the architecture (alpha_learning_rate, eg_step) decide more"
    )
    remark = limit.message(genotype)
    return (*arbitrary, *([undecided] if decision.undecided else []), *([remark] if remark else []))
