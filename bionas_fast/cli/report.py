"""``bionas-fast report``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bionas_fast import report as reports
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import print_json, print_lines
from bionas_fast.cli.sources import named_runs
from bionas_fast.config import CONFIG
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import REPORT, NewFolder, RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.summary import NO_FACTS, RunFacts


@with_plugins
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]RUN…", help="Folders of searches and trainings, also of several with seeds."),
    ],
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page.  [report.html of a single run, otherwise runs/…]"),
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="[NAME=]FOLDER", help="Results of `bionas-fast attack`; repeatable."),
    ] = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Write the report of a run again, or one page that compares several.

    Runs that are not complete are shown as far as they are. Searches, trainings and different datasets are compared
    apart from each other.
    """
    named = named_runs(runs)
    tables = {name: reports.AttackTable.read(path) for name, path in named_runs(attacks or ()).items()}
    first = next(iter(named.values()))
    if len(named) == 1 and os.path.isfile(first / CONFIG):
        page = first / REPORT if file is None else _expect_page(file)
        reports.write_report(first, page, facts=_facts(first), attacks=tables)
    else:
        compared = _collected(named)
        page = NewFolder("report-" + "-".join(named)).make() / REPORT if file is None else _expect_page(file)
        reports.write_comparison(page, compared, title="Comparison", attacks=tables)
    (print_json if as_json else print_lines)({"report": str(page)})


def _collected(named: Mapping[str, Path]) -> Sequence[reports.Compared]:
    for path in named.values():
        if not os.path.isdir(path):
            raise InputError(f"no run folder {path}")
    return reports.collect(named)


def _expect_page(path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out: expected the name of an HTML file, such as page.html, got {path}")
    return path


def _facts(path: Path) -> RunFacts:
    folder = RunFolder.open(path)
    record = folder.read()
    return get_kind(record.kind).trainer.facts(folder, record) if record.kind in kind_names() else NO_FACTS
