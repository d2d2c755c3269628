"""``bionas-fast runs``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bionas_fast.cli.options import AsJson
from bionas_fast.cli.output import print_json, print_unbroken, say
from bionas_fast.errors import InputError
from bionas_fast.runs.summary import RunSummary, find_runs


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A folder of run folders.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, those repeated over seeds too: kind, data, state, figures."""
    summaries, damaged = [], []
    for path in find_runs(folder):
        try:
            summaries.append(RunSummary.read(path))
        except InputError as error:
            damaged.append(str(error))
    if as_json:
        print_json([_row(summary, folder) | _duration(summary) for summary in summaries])
    else:
        # Names of runs are words of further commands: they stand last and in one piece.
        table = Table("kind", "data", "seed", "epochs", "state", "accuracy %", "run", box=None, header_style="bold")
        for summary in summaries:
            name, *others = (_text(value) for value in _row(summary, folder).values())
            table.add_row(*others, name)
        print_unbroken(table)
    for message in damaged:
        say(f"note: {message}")


def _row(summary: RunSummary, folder: Path) -> dict[str, Any]:
    return {
        "run": str(summary.path.relative_to(folder)) if summary.path != folder else folder.name,
        "kind": summary.label,
        "data": summary.dataset,
        "seed": summary.seed,
        "epochs": f"{summary.done}/{summary.epochs}",
        "state": summary.state,
        "accuracy": summary.accuracy,
    }


def _duration(summary: RunSummary) -> dict[str, float | None]:
    found = summary.duration
    wall, processor = (None, None) if found is None else (found.wall, found.processor)
    return {"wall_seconds": wall, "processor_seconds": processor}


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
