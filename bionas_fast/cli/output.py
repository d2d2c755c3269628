"""Output of the command line: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from bionas_fast.errors import BionasWarning, printable
from bionas_fast.runs import progress
from bionas_fast.runtime import distributed
from bionas_fast.train import TrainResult

out, err = Console(), Console(stderr=True)


def silence_other_ranks() -> None:
    """Let only rank 0 print."""
    out.quiet = err.quiet = not distributed.is_main()


class Bars(progress.Progress):
    """Two progress bars on stderr: epochs, and the steps of the current epoch with their rate."""

    def start(self, description: str, epochs: int, steps: int) -> None:
        self._steps = steps
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
        )
        self._all = self._bars.add_task(description, total=epochs * steps, note="", rate="")
        self._epochs, self._done = epochs, 0
        self._bars.start()

    def resume(self, epochs: int, steps: int) -> None:
        self._done = epochs
        self._bars.reset(self._all, completed=epochs * self._steps + steps, note="", rate="")

    def step(self, loss: float | None = None) -> None:
        self._bars.advance(self._all)
        speed = self._bars.tasks[0].speed
        rate = ""
        if speed:
            rate = f"{speed:.2f} steps/s" if speed >= 1 else f"{1 / speed:.2f} s/step"
        note = "" if loss is None else f"epoch {self._done + 1}/{self._epochs}  loss {loss:.3f}"
        self._bars.update(self._all, rate=rate, note=note)

    def epoch(self, row: Mapping[str, float]) -> None:
        self._done += 1
        name = next((n for n in ("valid_accuracy", "test_accuracy") if n in row), None)
        accuracy = f"   {name.partition('_')[0]} {row[name]:.2f} %" if name else ""
        self._bars.console.print(
            f"epoch {row['epoch']:>3}   train {row['train_accuracy']:.2f} %{accuracy}   {row['seconds']:.1f} s",
            highlight=False,
        )

    def result(self, variant: str, seed: int, accuracy: float) -> None:
        err.print(f"{variant}, seed {seed}: {accuracy:.2f} %", markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        self._bars.stop()


@contextmanager
def interruptible() -> Iterator[None]:
    """Print how to resume an interrupted run, on one line, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt as stop:
        err.print(str(stop) or "interrupted", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def print_trained(result: TrainResult[Any], head: Mapping[str, str]) -> None:
    """Print the result of a training, after the lines of ``head``."""
    print_lines({**head, **result.lines(), "run folder": str(result.run_dir)})


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows with the same columns as a table; nothing if there are none."""
    if not rows:
        return
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    out.print(table)


def print_lines(pairs: Mapping[str, str]) -> None:
    """Print names and values, one pair per line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        out.print(Text.assemble((f"{name:<{width}}  ", "bold"), str(value)), soft_wrap=True)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this package on one line and drop all others; replaces :func:`warnings.showwarning`."""
    if issubclass(category, BionasWarning):
        err.print(f"note: {printable(str(message))}", markup=False, highlight=False, soft_wrap=True)


class LogLines(logging.Handler):
    """Handler that prints each message of the library once, on one line of stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._printed:
            self._printed.add(message)
            err.print(message, markup=False, highlight=False, soft_wrap=True)


def show_log(name: str) -> None:
    """Print the messages of a logger and those below it on stderr."""
    logger = logging.getLogger(name)
    logger.handlers = [LogLines()]
    logger.setLevel(logging.INFO)
