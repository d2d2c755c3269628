"""Output of the command line: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bionas_fast.errors import BionasWarning, printable
from bionas_fast.runs.terminal import TerminalProgress
from bionas_fast.runtime import distributed
from bionas_fast.train import TrainResult

out, err = Console(), Console(stderr=True)


def silence_other_ranks() -> None:
    """Let only rank 0 print."""
    out.quiet = err.quiet = not distributed.is_main()


def progress() -> TerminalProgress:
    """Return a listener that shows the progress of a run on stderr."""
    return TerminalProgress(err)


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
