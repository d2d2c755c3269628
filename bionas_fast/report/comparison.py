"""The page of several runs, such as those repeated over seeds: a self-contained HTML file that leads to the runs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bionas_fast.errors import InputError, Unregistered
from bionas_fast.evaluation import Evaluation
from bionas_fast.report.charts import ENTROPY, full_entropy, panel_grid, series_legend, style_axes
from bionas_fast.report.colors import series_colors
from bionas_fast.report.heat import class_map
from bionas_fast.report.page import (
    Section,
    flat,
    folded,
    headline,
    html_page,
    inline_figure,
    link,
    paragraph,
    settings_table,
    table_of_rows,
)
from bionas_fast.report.robustness import TABLE, AttackTable
from bionas_fast.report.run import ReportedRun
from bionas_fast.report.run_page import cells, layers, robustness
from bionas_fast.report.seeds import curves_figure, results_figure, shares_figure
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.folder import REPORT, RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.seeds import NOTHING, SeedTable, Series
from bionas_fast.runs.summary import accuracy_of, find_runs
from bionas_fast.space import Agreement, Genotype

#: The largest number of genotypes that are drawn.
_DRAWN = 12
_SEED = "seed-"
_DOTS = "Dots: seeds. Bars: the mean and its 95 % confidence interval."
_DIFFERENCES = " Right: differences to the first variant of equal seeds; an interval with 0 in it shows none."


@dataclass(frozen=True)
class Compared:
    """Runs whose results are of one kind, on one dataset.

    Attributes:
        title: title of their section.
        table: their results; drawn with intervals, and for several variants with paired differences.
        runs: the run folders of each variant, also of runs without a result.
    """

    title: str
    table: SeedTable
    runs: Mapping[str, Sequence[Path]]


def write_comparison(
    path: str | Path,
    compared: Sequence[Compared],
    *,
    title: str,
    attacks: Mapping[str, AttackTable] | None = None,
) -> None:
    """Write a page about several runs: one HTML file without scripts, replaced atomically.

    Args:
        path: the file.
        compared: the runs; results of different kinds or datasets stand in sections of their own.
        title: title of the page.
        attacks: results of attacks, by name.

    Raises:
        InputError: a run cannot be read, or the file cannot be written.
    """
    path = Path(path)
    read = [{name: list(map(ReportedRun.read, own)) for name, own in group.runs.items()} for group in compared]
    every: dict[str, ReportedRun] = {}
    for group in read:
        for name, own in group.items():
            every |= {f"{name}, seed {run.summary.seed}" if len(own) > 1 else name: run for run in own}
    names = ", ".join(dict.fromkeys(run.summary.dataset for run in every.values()))
    tables = [group.table for group in compared]
    header = [
        f"<h1>{escape(title)} <code>{escape(names)}</code></h1>",
        headline(
            {
                "runs": len(every),
                "variants": sum(len(table.series) for table in tables),
                "complete": sum(len(series.values) for table in tables for series in table.series),
                "failed": sum(len(table.failures) for table in tables),
            }
        ),
    ]
    parts: dict[str, Iterator[str]] = {
        **{
            group.title: _results(group.table, runs, number)
            for number, (group, runs) in enumerate(zip(compared, read, strict=True))
        },
        "Runs": _runs(every, path.parent),
        "Genotypes": _genotypes({name: run.genotype for name, run in every.items() if run.genotype is not None}),
        "α over time": _entropies(every),
        "Test images by class": _classes([own for group in read for own in group.items()]),
        "Layers": layers({name: run.layers for name, run in every.items() if run.layers}),
        "Robustness": robustness(attacks or {}),
        "Configuration": _differences({name: run.settings for name, run in every.items()}),
        "Machine": _differences({name: run.machine for name, run in every.items()}),
    }
    found = {heading: "\n".join(content) for heading, content in parts.items()}
    sections = [Section(heading, content) for heading, content in found.items() if content]
    write_atomic(path, html_page(title, header, sections))


def collect(named: Mapping[str, Path]) -> list[Compared]:
    """Find the runs in folders, and sort them by the kind of their result and their dataset.

    Args:
        named: folders of runs, or of runs repeated over seeds, ``VARIANT/seed-N``, by name.

    Raises:
        InputError: a folder without runs, or with a damaged one; two runs of a variant have one seed.
    """
    groups: dict[tuple[bool, str], dict[str, list[ReportedRun]]] = {}
    for name, folder in named.items():
        paths = find_runs(folder)
        if not paths:
            attacks = "; it holds results of attacks: name the runs, and it with --attack"
            raise InputError(f"{folder} holds no runs{attacks if os.path.isfile(folder / TABLE) else ''}")
        for path in paths:
            run = ReportedRun.read(path)
            below = [part for part in path.relative_to(folder).parts if not part.startswith(_SEED)]
            variant = " ".join(below if below and len(named) == 1 else [name, *below])
            groups.setdefault((run.searches, run.summary.dataset), {}).setdefault(variant, []).append(run)
    return [_compared(*key, group) for key, group in groups.items()]


def _compared(searches: bool, dataset: str, group: Mapping[str, Sequence[ReportedRun]]) -> Compared:
    series = []
    for variant, runs in group.items():
        values, shares = {}, {}
        seeds = [run.summary.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{variant}: two of {', '.join(str(run.path) for run in runs)} have one seed")
        for run in runs:
            if run.summary.state == "complete" and run.accuracy is not None:
                values[run.summary.seed] = run.accuracy
            share = _share_of_bp(run)
            if share is not None:
                shares[run.summary.seed] = share
        series.append(Series(variant, values, shares))
    metric, title = ("validation accuracy %", "Searches") if searches else ("test accuracy %", "Trainings")
    paths = {variant: [run.path for run in runs] for variant, runs in group.items()}
    return Compared(f"{title} on {dataset}", SeedTable(metric, tuple(series)), paths)


def _share_of_bp(run: ReportedRun) -> float | None:
    """Return the share of bp; None without a network, or if the record does not suffice to build it."""
    if run.record.kind not in kind_names():
        return None
    try:
        return get_kind(run.record.kind).trainer.share_of_bp(RunFolder.open(run.path), run.record)
    except Unregistered:
        raise
    except InputError:
        return None


def _results(table: SeedTable, runs: Mapping[str, Sequence[ReportedRun]], number: int) -> Iterator[str]:
    yield table_of_rows(table.rows(), f"{table.metric} of every variant")
    yield paragraph(table.legend)
    yield from map(paragraph, table.failures)
    with_results = [series for series in table.series if series.values]
    if with_results:
        yield inline_figure(
            results_figure(table),
            f"results{number}",
            f"{table.metric} of every seed, with means and intervals: "
            + "; ".join(f"{series.name} {series.interval}" for series in with_results),
            _DOTS + (_DIFFERENCES if len(table.series) > 1 else ""),
        )
    if len({round(series.share, 1) for series in with_results if series.shares}) > 1:
        yield inline_figure(
            shares_figure(table),
            f"bp{number}",
            f"{table.metric} over the share of the weights that learn by back-propagation: "
            + "; ".join(f"{series.name} {series.share:.1f} %" for series in with_results if series.shares),
            "A variant with much bp says little about its rule.",
        )
    curves = {name: list(map(_accuracies, own)) for name, own in runs.items()}
    if any(curve for own in curves.values() for curve in own):
        yield inline_figure(
            curves_figure(curves), f"curves{number}", f"{table.metric} over epochs, one line per seed", table.metric
        )


def _accuracies(run: ReportedRun) -> dict[int, float]:
    """Return the accuracy after each epoch of a run that has one."""
    found = ((epoch, accuracy_of(row)) for epoch, row in enumerate(run.metrics, start=1))
    return {epoch: accuracy for epoch, accuracy in found if accuracy is not None}


def _runs(runs: Mapping[str, ReportedRun], folder: Path) -> Iterator[str]:
    rows = [
        {
            "run": link(_target(run.path, folder), name),
            "kind": run.summary.label,
            "dataset": run.summary.dataset,
            "seed": run.summary.seed,
            "epochs": f"{run.summary.done} of {run.summary.epochs}",
            "state": run.summary.state,
            "accuracy %": None if run.accuracy is None else f"{run.accuracy:.2f}",
            "begun": run.record.machine.get("date"),
        }
        for name, run in runs.items()
    ]
    yield table_of_rows(rows, "All runs; the accuracy is that on the test images, of a search that of its supernet.")


def _target(run: Path, folder: Path) -> str:
    target = run / REPORT if (run / REPORT).is_file() else run
    return quote(os.path.relpath(str(target), str(folder)))


def _genotypes(genotypes: Mapping[str, Genotype]) -> Iterator[str]:
    if not genotypes:
        return
    rows = [
        {"run": name, "genotype": genotype.hash, "rules": ", ".join(genotype.rules) or NOTHING}
        for name, genotype in genotypes.items()
    ]
    yield table_of_rows(rows, "The genotype of every search and of every network that has one")
    distinct = {genotype.hash: genotype for genotype in genotypes.values()}
    if len(distinct) > 1 and len({type(g.skeleton) and g.skeleton for g in distinct.values()}) == 1:
        yield paragraph(f"In all genotypes: {Agreement.of(list(distinct.values()))}.")
    for number, (name, genotype) in enumerate(list(distinct.items())[:_DRAWN]):
        yield folded(f"The cells of {name}", "\n".join(cells(genotype, f"cells{number}")))
    if len(distinct) > _DRAWN:
        yield paragraph(f"{len(distinct) - _DRAWN} more genotypes are drawn in the reports of their runs.")


def _entropies(runs: Mapping[str, ReportedRun]) -> Iterator[str]:
    searches = {name: run for name, run in runs.items() if run.space is not None and run.metrics}
    if searches:
        yield inline_figure(
            entropy_figure(searches),
            "entropy",
            "Entropy of α in bits over epochs, one line per search",
            "Dotted: equal α; at 0 every edge has decided for one candidate.",
        )


def entropy_figure(searches: Mapping[str, ReportedRun]) -> Figure:
    """Draw the entropy of α over epochs, one line per search, from 0 to the entropy of equal α."""
    figure, (ax,) = panel_grid(1, 1, 2.6, entries=len(searches))
    style_axes(ax, ENTROPY)
    for name, color in series_colors(searches).items():
        bits = [float(row.get("alpha_entropy") or math.nan) / math.log(2) for row in searches[name].metrics]
        ax.plot(range(1, len(bits) + 1), bits, color=color, lw=1.8, marker="o" if len(bits) < 4 else None, ms=4)
    for number in sorted({len(run.space.candidates) for run in searches.values() if run.space is not None}):
        full_entropy(ax, number)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    series_legend(figure, searches)
    return figure


def _classes(variants: Sequence[tuple[str, Sequence[ReportedRun]]]) -> Iterator[str]:
    """Write the accuracy by class of the variants, one table for each dataset."""
    found: dict[tuple[str, tuple[str, ...], int], dict[str, list[Evaluation]]] = {}
    for name, runs in variants:
        for run in runs:
            if run.evaluation is not None:
                key = run.summary.dataset, run.classes, len(run.evaluation.confusion)
                found.setdefault(key, {}).setdefault(name, []).append(run.evaluation)
    for (dataset, classes, _), evaluations in found.items():
        if len(found) > 1:
            yield f"<h3>{escape(dataset)}</h3>"
        yield class_map(evaluations, classes)


def _differences(properties: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Write the properties in which runs differ, one row per run, and those that are the same in all."""
    own = {name: flat(values) for name, values in properties.items() if values}
    names = list(dict.fromkeys(name for values in own.values() for name in values))
    differ = [name for name in names if len({repr(values.get(name)) for values in own.values()}) > 1]
    if differ:
        rows = [{"run": run, **{name: values.get(name) for name in differ}} for run, values in own.items()]
        yield table_of_rows(rows, "Where the runs differ")
    same = {name: value for values in own.values() for name, value in values.items() if name not in differ}
    if same:
        yield folded("The same in all runs" if len(own) > 1 else "All", settings_table(same))
