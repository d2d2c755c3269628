"""Output of the command line: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bionas_fast.errors import BionasWarning, InputError, printable
from bionas_fast.plugins import is_of_plugin
from bionas_fast.runs.terminal import TerminalProgress
from bionas_fast.runtime.launch import launched_rank

out, err = Console(), Console(stderr=True)


#: The file that messages and progress also go to, if there is one.
_log_files: list[TextIO] = []


def progress() -> TerminalProgress:
    """Return a listener that shows the progress of a run on stderr, and writes it into the log file."""
    return TerminalProgress(err, copy=note_down if _log_files else None)


@contextmanager
def interruptible() -> Iterator[None]:
    """Print how to resume an interrupted run, on one line, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt as stop:
        say(str(stop) or "interrupted")
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    if not out.quiet:
        print(json.dumps(value, indent=2, ensure_ascii=False))


def say(message: object) -> None:
    """Print a message on one line of stderr."""
    err.print(str(message), markup=False, highlight=False, soft_wrap=True)
    note_down(str(message))


def note_down(message: str) -> None:
    """Write a message into the log file, with the time."""
    for file in _log_files:
        print(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {message}", file=file, flush=True)


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows with the same columns as a table; nothing if there are none."""
    if not rows:
        return
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    out.print(table)


def print_unbroken(table: Table) -> None:
    """Print a table whose cells stay in one piece; a narrow terminal continues its lines on the next."""

    class Unbroken:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            return console.render(table, options.update(max_width=max(options.max_width, 10_000)))

    out.print(Unbroken(), soft_wrap=True)


def print_entry(head: str, *texts: str) -> None:
    """Print an entry of a list: its head, and indented texts, wrapped to the width of the terminal."""
    out.print(Text(head, style="bold"))
    for text in filter(None, texts):
        out.print(Padding(Text(text), (0, 0, 0, 4)))


def print_lines(pairs: Mapping[str, str]) -> None:
    """Print names and values, one pair per line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        out.print(Text.assemble((f"{name:<{width}}  ", "bold"), str(value)), soft_wrap=True)


def show_messages(verbosity: int, log_file: Path | None) -> None:
    """Show the messages of the library on one line each; of several processes, only rank 0 prints.

    Args:
        verbosity: -1 for none, 0 for those of this package and of plugins, 1 for warnings of other packages, too.
        log_file: a file to which the messages and the progress of runs are appended.

    Raises:
        InputError: the file cannot be written.
    """
    out.quiet = launched_rank() != 0
    err.quiet = out.quiet or verbosity < 0
    while _log_files:
        _log_files.pop().close()
    if log_file is not None and not out.quiet:
        try:
            _log_files.append(open(log_file, "a", encoding="utf-8"))  # noqa: SIM115
        except OSError as error:
            raise InputError(f"--log-file: cannot write to {log_file}: {error.strerror or error}") from None
    logger = logging.getLogger("bionas_fast")
    logger.handlers = [_Lines()]
    logger.setLevel(logging.INFO)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, BionasWarning):
            say(f"note: {printable(str(message))}")
        elif verbosity > 0 or is_of_plugin(filename):
            say(f"{category.__name__}: {printable(str(message))}")

    warnings.showwarning = show


class _Lines(logging.Handler):
    """Handler that says each message of the library once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._said:
            self._said.add(message)
            say(message)
