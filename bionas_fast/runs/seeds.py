"""Repetition of runs over seeds: one resumable run a seed, and the statistics of their results."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bionas_fast.config import CONFIG
from bionas_fast.errors import InputError
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.summary import RunSummary

#: Begins a run of a seed in a new folder, or resumes the one in it: ``start(seed, folder, resume)``.
Start = Callable[[int, Path, bool], object]

#: The confidence of all intervals.
CONFIDENCE = 0.95


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
        from scipy.stats import t  # slow to import

        quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
        return cls(mean, quantile * statistics.stdev(values) / math.sqrt(count), count)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if math.isnan(self.half_width) else f"{self.mean:.2f} ± {self.half_width:.2f}"


@dataclass(frozen=True)
class Series:
    """The results of a variant.

    Attributes:
        name: name of the variant.
        values: the result of each seed.
    """

    name: str
    values: Mapping[int, float]

    @property
    def interval(self) -> Interval:
        """The mean and its confidence interval."""
        return Interval.of(list(self.values.values()))

    @property
    def deviation(self) -> float:
        """The sample standard deviation; NaN for a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan

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
        series: the variants.
    """

    metric: str
    series: tuple[Series, ...]

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the table as text: name, seeds, mean ± interval, deviation, difference to the first."""
        first = self.series[0]
        rows = []
        for series in self.series:
            row = {
                "variant": series.name,
                "seeds": str(len(series.values)),
                self.metric: str(series.interval),
                "deviation": "–" if math.isnan(series.deviation) else f"{series.deviation:.2f}",
            }
            if len(self.series) > 1:
                row[f"minus {first.name}"] = "–" if series is first else _signed(series.minus(first))
            rows.append(row)
        return rows

    def to_markdown(self) -> str:
        """Write the table in Markdown."""
        rows = self.rows()
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_csv(self) -> str:
        """Write the result of every seed of every variant, one per line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("variant", "seed", self.metric))
        for series in self.series:
            writer.writerows((series.name, seed, repr(value)) for seed, value in series.values.items())
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """Write ``table.md`` and ``table.csv`` into a folder, atomically."""
        write_atomic(folder / "table.md", self.to_markdown())
        write_atomic(folder / "table.csv", self.to_csv())


def _signed(interval: Interval) -> str:
    text = str(interval)
    return text if text.startswith("-") else f"+{text}"


def run_seeds(name: str, folder: Path, seeds: Sequence[int], start: Start) -> Series:
    """Run a variant once per seed, in ``folder/seed-N``; complete runs are read, stopped ones resumed.

    Args:
        name: name of the variant.
        folder: the folder of its runs.
        seeds: the seeds.
        start: begins or resumes the run of a seed.

    Raises:
        InputError: a run that is in use or damaged, or has no accuracy.
    """
    values = {}
    for seed in seeds:
        path = folder / f"seed-{seed}"
        begun = os.path.isfile(path / CONFIG)
        if not begun or RunSummary.read(path).state != "complete":
            start(seed, path, begun)
        accuracy = RunSummary.read(path).accuracy
        if accuracy is None:
            raise InputError(f"{path}: the run has no accuracy")
        values[seed] = accuracy
    return Series(name, values)
