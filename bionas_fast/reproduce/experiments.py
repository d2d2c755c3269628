"""The tables and figures of the paper, computed from the runs of a plan beside the published figures."""

from __future__ import annotations

import json
import math
import os
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bionas_fast.config import CONFIG
from bionas_fast.errors import unknown
from bionas_fast.reproduce.plan import Plan, Step, read_table
from bionas_fast.runs.folder import LAYERS, RunFolder
from bionas_fast.runs.kinds import get_kind
from bionas_fast.runs.seeds import LEGEND, NOTHING, TABLE_JSON, Interval, SeedTable, Series, markdown
from bionas_fast.runs.summary import RunSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bionas_fast.analysis import WeightDistribution


@dataclass(frozen=True)
class Part:
    """A part of a result.

    Attributes:
        title: its title.
        rows: a table: rows with the same columns, as text.
        legend: the meaning of the numbers.
    """

    title: str
    rows: Sequence[Mapping[str, str]]
    legend: str

    def to_markdown(self) -> str:
        """Write the title, the table and its legend in Markdown."""
        return f"### {self.title}\n\n{markdown(self.rows)}\n{self.legend}\n"


@dataclass(frozen=True)
class Experiment(ABC):
    """A table or figure of the paper.

    Attributes:
        name: its name.
        title: its title.
        data: what the package's tables.yaml says of it.
    """

    name: str
    title: str
    data: Mapping[str, Any]

    @abstractmethod
    def steps(self, plan: Plan) -> list[Step]:
        """Return the commands that it needs, in the order of execution."""

    @abstractmethod
    def parts(self, plan: Plan) -> list[Part]:
        """Compute its tables from the runs that are complete; none if there are none."""

    def figures(self, plan: Plan) -> dict[str, Figure]:
        """Draw its figures from the runs of the first seed, by name."""
        return {}


class AccuracyTable(Experiment):
    """Tables 1, 2, 3 and 5: a trained network in each row."""

    def steps(self, plan: Plan) -> list[Step]:
        """Return the searches and trainings."""
        runs = [run for rows in self.data["columns"].values() for _, run in rows.values()]
        return plan.steps([run for run in runs if plan.has(run)])

    def parts(self, plan: Plan) -> list[Part]:
        """Compute a table for each dataset of the paper."""
        found = (self._part(plan, dataset, rows) for dataset, rows in self.data["columns"].items())
        return [part for part in found if part is not None]

    def _part(self, plan: Plan, dataset: str, rows: Mapping[str, tuple[float | None, str]]) -> Part | None:
        metric = self.data["metric"]
        here = {row: run for row, (_, run) in rows.items() if plan.has(run)}
        series = [_series(row, plan, run, as_error="error" in metric) for row, run in here.items()]
        if not any(own.values for own in series):
            return None
        table = SeedTable(metric, tuple(series))
        published = {row: NOTHING if figure is None else f"{figure:.2f}" for row, (figure, _) in rows.items()}
        shown = [
            {"row": row["variant"], f"published, {dataset}": published[row["variant"]]}
            | {name: value for name, value in row.items() if name != "variant"}
            for row in table.rows()
        ]
        absent = [row for row in rows if row not in here]
        left_out = f" Not computed at this scale: {', '.join(absent)}." if absent else ""
        return Part(self.title, shown, f"{_data_of(plan, here.values())}{table.legend}{left_out}")


class AttackTable(Experiment):
    """Table 4: networks under attack."""

    def steps(self, plan: Plan) -> list[Step]:
        """Return the trainings of the networks, and the attacks on them."""
        attack = plan.scale.attack
        return [*plan.steps([*attack.networks, attack.source]), *plan.attack_steps(self._attacks())]

    def _attacks(self) -> list[str]:
        return [attack for attack, *_ in self.data["attacks"].values() if attack != "none"]

    def parts(self, plan: Plan) -> list[Part]:
        """Compute the published table, what is left of it without its averaging, and the one measured here."""
        records = list(_attack_records(plan))
        if not records:
            return []
        eps = sorted({record["eps"] for record in records if record["eps"] is not None})
        images = records[0]["images"]
        legend = (
            f"{_data_of(plan, plan.scale.attack.networks)}Robust accuracy of the first {images} test images, ε "
            f"{', '.join(f'{255 * value:.3g}/255' for value in eps)}; an image that is wrong before the attack counts "
            f"as wrong. Blindness: through feedback minus through the true gradient. {LEGEND}"
        )
        return [*self._published(), Part(f"{self.title}, here", list(self._rows(plan, records)), legend)]

    def _published(self) -> Iterator[Part]:
        networks, attacks = self.data["networks"], self.data["attacks"]
        rows = [
            {"attack": row, **{name: f"{value:.1f}" for name, value in zip(networks, values, strict=True)}}
            for row, (_, *values) in attacks.items()
        ]
        yield Part(f"{self.title}, as published", rows, "CIFAR-10.")
        averaged = self.data["averaged"]
        column = networks.index(averaged) + 1
        clean = attacks["Clean"][column]
        undone = [
            {
                "attack": row,
                "as published": f"{own[column]:.1f}",
                "attacked images alone": f"{2 * own[column] - clean:.1f}",
            }
            for row, own in attacks.items()
            if row != "Clean"
        ]
        legend = (
            "The meter of the published script also counts the same images before the attack: what it prints is the "
            f"mean of both accuracies, if the clean accuracy of these images was the published one, {clean:.1f}."
        )
        yield Part(f"{self.title}, {averaged}, without the averaging", undone, legend)

    def _rows(self, plan: Plan, records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
        networks = plan.scale.attack.networks
        found: dict[tuple[str, str | None, str], dict[int, float]] = {}
        for record in records:
            key = record["attack"], record["gradient"], record["network"]
            found.setdefault(key, {})[record["seed"]] = record["accuracy"]
        for row, (attack, *_) in self.data["attacks"].items():
            gradients = list(dict.fromkeys(gradient for own, gradient, _ in found if own == attack))
            for gradient in gradients:
                values = [found.get((attack, gradient, network), {}) for network in networks]
                yield self._row(row, gradient or NOTHING, networks, [_interval(own.values()) for own in values])
            if len(gradients) > 1:
                pairs = ([found.get((attack, g, network), {}) for g in ("feedback", "true")] for network in networks)
                gaps = [_interval([one[seed] - other[seed] for seed in one if seed in other]) for one, other in pairs]
                yield self._row(row, "blindness", networks, gaps)

    @staticmethod
    def _row(attack: str, gradient: str, networks: Sequence[str], values: Sequence[str]) -> dict[str, str]:
        return {"attack": attack, "gradient": gradient, **dict(zip(networks, values, strict=True))}


class GradientFigure(Experiment):
    """Figure 3: the gradients of a network under several assignments of rules."""

    def steps(self, plan: Plan) -> list[Step]:
        """Return the searches and trainings."""
        return plan.steps(list(self.data["networks"].values()))

    def parts(self, plan: Plan) -> list[Part]:
        """Compute the means over layers and recorded epochs, and the ratios to the first network."""
        rows = []
        first: dict[str, dict[int, float]] = {}
        for name, run in self.data["networks"].items():
            found = {seed: own for seed in range(plan.seeds) if (own := _layers(plan.folder(run, seed)))}
            if not found:
                continue
            row = {"network": name, "seeds": str(len(found))}
            for title, key in _GRADIENTS.items():
                values = {seed: _mean(own, key) for seed, own in found.items()}
                row[title] = (_geometric if key in _GEOMETRIC else _precise)(list(values.values()))
                if key in _GEOMETRIC:
                    base = first.setdefault(key, values)
                    ratios = [values[seed] / base[seed] for seed in values if seed in base]
                    row[f"{title}, ratio"] = NOTHING if base is values or not ratios else _geometric(ratios)
            rows.append(row)
        legend = (
            f"{_data_of(plan, self.data['networks'].values())}Means over layers and recorded epochs but the first. Of "
            "variance and noise scale geometric means, with the 95 % confidence interval over seeds in brackets, and "
            f"ratios to the first network, paired by seed. {LEGEND}"
        )
        return [Part(self.title, rows, legend)] if rows else []

    def figures(self, plan: Plan) -> dict[str, Figure]:
        """Draw the course of the first seed."""
        from bionas_fast.report.layers import alignment_figure, gradients_figure

        rows = {name: _layers(plan.folder(run, 0)) for name, run in self.data["networks"].items()}
        rows = {name: own for name, own in rows.items() if own}
        if not rows:
            return {}
        return {"gradients": gradients_figure(rows), "alignment": alignment_figure(rows)}


class WeightFigure(Experiment):
    """Figures 4 to 6: the weights of networks under several assignments of rules."""

    def steps(self, plan: Plan) -> list[Step]:
        """Return the searches and trainings."""
        return plan.steps(list(self.data["networks"].values()))

    def parts(self, plan: Plan) -> list[Part]:
        """Compute standard deviation and kurtosis of all weights."""
        rows = []
        for name, run in self.data["networks"].items():
            found = [_weights(plan.folder(run, seed)) for seed in range(plan.seeds)]
            whole = [own[0] for own in found if own]
            if whole:
                near = {"within ±0.01, %": [100 * own.near_zero for own in whole]}
                spread = {"σ": [own.sigma for own in whole], "excess kurtosis": [own.kurtosis for own in whole]}
                rows.append(_measured(name, spread | near))
        legend = f"{_data_of(plan, self.data['networks'].values())}All weight matrices together. {LEGEND}"
        return [Part(self.title, rows, legend)] if rows else []

    def figures(self, plan: Plan) -> dict[str, Figure]:
        """Draw the distributions of the first seed."""
        from bionas_fast.analysis.figures import weights_figure

        weights = {name: _weights(plan.folder(run, 0)) for name, run in self.data["networks"].items()}
        weights = {name: own for name, own in weights.items() if own}
        return {"weights": weights_figure(weights)} if weights else {}


_KINDS: Mapping[str, type[Experiment]] = {
    "table1": AccuracyTable,
    "table2": AccuracyTable,
    "table3": AccuracyTable,
    "table4": AttackTable,
    "table5": AccuracyTable,
    "figure3": GradientFigure,
    "figure4": WeightFigure,
}
_GRADIENTS = {"variance": "variance", "noise scale": "noise_scale", "cosine to the true gradient": "cosine"}
_GEOMETRIC = ("variance", "noise_scale")


def experiment_names() -> tuple[str, ...]:
    """Return the names of all tables and figures."""
    return tuple(_KINDS)


def get_experiment(name: str) -> Experiment:
    """Look up a table or figure.

    Raises:
        InputError: an unknown name; the message suggests the nearest ones.
    """
    if name not in _KINDS:
        raise unknown("table or figure", name, _KINDS)
    data = read_table("tables.yaml")[name]
    return _KINDS[name](name, data["title"], data)


def _series(row: str, plan: Plan, run: str, *, as_error: bool) -> Series:
    values, shares = {}, {}
    for seed in range(plan.seeds):
        path = plan.folder(run, seed)
        accuracy = _accuracy(path)
        if accuracy is None:
            continue
        values[seed] = 100 - accuracy if as_error else accuracy
        folder = RunFolder.open(path)
        record = folder.read()
        share = get_kind(record.kind).trainer.share_of_bp(folder, record)
        if share is not None:
            shares[seed] = share
    return Series(row, values, shares)


def _accuracy(path: Path) -> float | None:
    """Return the accuracy of a complete run, in percent."""
    if not os.path.isfile(path / CONFIG):
        return None
    summary = RunSummary.read(path)
    return summary.accuracy if summary.state == "complete" else None


def _data_of(plan: Plan, runs: Iterable[str]) -> str:
    """Describe the data of the runs in a sentence; they have the same."""
    paths = (plan.folder(run, 0) for run in runs)
    found = next((RunSummary.read(path).dataset for path in paths if os.path.isfile(path / CONFIG)), None)
    return "" if found is None else f"Dataset {found}, seeds 0 to {plan.seeds - 1}. "


def _attack_records(plan: Plan) -> Iterator[dict[str, Any]]:
    for seed in range(plan.seeds):
        path = plan.folder("attack", seed) / TABLE_JSON
        if os.path.isfile(path):
            content = json.loads(path.read_text(encoding="utf-8"))
            yield from ({**record, "seed": seed} for record in content["records"])


def _layers(path: Path) -> list[dict[str, Any]]:
    if _accuracy(path) is None or not os.path.isfile(path / LAYERS):
        return []
    return RunFolder.open(path).read_rows(LAYERS)


def _weights(path: Path) -> tuple[WeightDistribution, ...]:
    """Return the distribution of all weights of a trained network, and those of its rules."""
    from bionas_fast.analysis import measure_weights
    from bionas_fast.training import load

    if _accuracy(path) is None:
        return ()
    network = load(path)
    return (*measure_weights(network, by="network"), *measure_weights(network, by="rule"))


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if row["epoch"] > 0 and row[key] is not None]
    if key in _GEOMETRIC:
        return statistics.geometric_mean([value for value in values if value > 0])
    return statistics.fmean(values)


def _measured(name: str, values: Mapping[str, Sequence[float]]) -> dict[str, str]:
    count = len(next(iter(values.values())))
    return {"network": name, "seeds": str(count), **{title: _precise(own) for title, own in values.items()}}


def _geometric(values: Sequence[float]) -> str:
    """Format a geometric mean and the interval that follows from that of the logarithms."""
    own = Interval.of([math.log(value) for value in values])
    low, high = math.exp(own.mean - own.half_width), math.exp(own.mean + own.half_width)
    return f"{math.exp(own.mean):.3g}" + ("" if len(values) == 1 else f" [{low:.2g}, {high:.2g}]")


def _precise(values: Sequence[float]) -> str:
    """Format a mean and its interval with three significant digits."""
    own = Interval.of(values)
    return f"{own.mean:.3g}" if len(values) == 1 else f"{own.mean:.3g} ± {own.half_width:.2g}"


def _interval(values: Iterable[float]) -> str:
    known = list(values)
    return str(Interval.of(known)) if known else NOTHING
