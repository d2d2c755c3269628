"""Statistics of results over seeds: means, deviations, paired differences, and their tables."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bionas_fast.errors import InputError
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.student import student_quantile

#: The confidence of all intervals.
CONFIDENCE = 0.95
#: The files of a table in a folder.
TABLE_MARKDOWN, TABLE_CSV, TABLE_JSON = "table.md", "table.csv", "table.json"
#: The meaning of the numbers of a table.
LEGEND = "± 95 % confidence interval of the mean over seeds (Student's t); differences are paired by seed."
#: The column of the shares of back-propagation, and its meaning.
SHARE = "bp %"
SHARE_LEGEND = f"{SHARE}: share of the weights that learn by back-propagation."
#: The column of the differences to baselines.
WITHIN = "within genotype"
#: Cell of a table without a value.
NOTHING = "–"


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, from Student's t distribution.

    Attributes:
        mean: the mean.
        half_width: half the width of the interval; NaN for a single value.
        count: number of values.
    """

    mean: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Compute the interval of the mean of independent values.

        Raises:
            InputError: no values.
        """
        if not values:
            raise InputError("values: expected at least one")
        count, mean = len(values), statistics.fmean(values)
        if count == 1:
            return cls(mean, math.nan, 1)
        half_width = student_quantile(CONFIDENCE, count - 1) * statistics.stdev(values) / math.sqrt(count)
        return cls(mean, half_width, count)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if math.isnan(self.half_width) else f"{self.mean:.2f} ± {self.half_width:.2f}"


@dataclass(frozen=True)
class Series:
    """The results of a variant.

    Attributes:
        name: name of the variant.
        values: the result of each seed.
        shares: the share of the weights that learn by back-propagation, in percent, of the network of each seed; empty
            for runs without one.
        failures: for each seed whose run ended with an error: the error.
        baseline: the name of the variant that this one is also compared with; empty for none but the first.
    """

    name: str
    values: Mapping[int, float]
    shares: Mapping[int, float] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)
    baseline: str = ""

    @property
    def interval(self) -> Interval:
        """The mean and its confidence interval."""
        return Interval.of(list(self.values.values()))

    @property
    def deviation(self) -> float:
        """The sample standard deviation; NaN for fewer than two seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan

    @property
    def share(self) -> float:
        """The mean share of the weights that learn by back-propagation, in percent; NaN if it is unknown."""
        return statistics.fmean(self.shares.values()) if self.shares else math.nan

    def minus(self, other: Series) -> Interval:
        """Compute the mean of the paired differences over the seeds that both have, and its interval.

        Raises:
            InputError: no common seed.
        """
        common = [seed for seed in self.values if seed in other.values]
        if not common:
            raise InputError(f"{self.name} and {other.name} have no seed in common")
        return Interval.of([self.values[seed] - other.values[seed] for seed in common])


@dataclass(frozen=True)
class SeedTable:
    """The results of several variants over seeds, each compared with the first one.

    Attributes:
        metric: the quantity, with its unit.
        series: the variants; some may have no results yet.
        folder: the folder of the runs, or None if there is none.
    """

    metric: str
    series: tuple[Series, ...]
    folder: Path | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """For each run that ended with an error: the run, and the error."""
        return tuple(
            f"{series.name}, seed {seed}: {error}" for series in self.series for seed, error in series.failures.items()
        )

    @property
    def has_shares(self) -> bool:
        """Whether the share of back-propagation is known of any variant."""
        return any(series.shares for series in self.series)

    @property
    def legend(self) -> str:
        """The meaning of the numbers."""
        return f"{LEGEND} {SHARE_LEGEND}" if self.has_shares else LEGEND

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the table as text.

        The columns: name, number of seeds, mean ± interval, deviation, share of back-propagation if it is known, and
        with several variants the differences to the first one and to their baselines.
        """
        first = self.series[0]
        named = {series.name: series for series in self.series}
        rows = []
        for series in self.series:
            failed = f" ({len(series.failures)} failed)" if series.failures else ""
            row = {
                "variant": series.name,
                "seeds": f"{len(series.values)}{failed}",
                self.metric: str(series.interval) if series.values else NOTHING,
                "deviation": _number(series.deviation, 2),
            }
            if self.has_shares:
                row[SHARE] = _number(series.share, 1)
            if len(self.series) > 1:
                row[f"minus {first.name}"] = _difference(series, first)
            if any(own.baseline for own in self.series):
                row[WITHIN] = _difference(series, named.get(series.baseline, series))
            rows.append(row)
        return rows

    def to_markdown(self) -> str:
        """Write the table in Markdown, followed by its legend and the failures."""
        failures = "".join(f"- failed: {failure}\n" for failure in self.failures)
        return f"{markdown(self.rows())}\n{self.legend}\n" + (f"\n{failures}" if failures else "")

    def to_csv(self) -> str:
        """Write the result of every seed of every variant, one per line; that of a failed run is empty."""
        columns = ("variant", "seed", self.metric, *((SHARE,) if self.has_shares else ()))
        results = [
            (series.name, seed, series.values.get(seed, ""), series.shares.get(seed, ""))[: len(columns)]
            for series in self.series
            for seed in sorted({*series.values, *series.failures})
        ]
        return comma_separated(columns, results)

    def write(self, folder: Path) -> None:
        """Write ``table.md`` and ``table.csv`` into a folder, atomically.

        Raises:
            InputError: a file cannot be written.
        """
        write_atomic(folder / TABLE_MARKDOWN, self.to_markdown())
        write_atomic(folder / TABLE_CSV, self.to_csv())


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Write rows with the same columns as a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write rows as comma-separated values; numbers with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _difference(series: Series, other: Series) -> str:
    if series is other or series.values.keys().isdisjoint(other.values):
        return NOTHING
    text = str(series.minus(other))
    return text if text.startswith("-") else f"+{text}"


def _number(value: float, digits: int) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"
