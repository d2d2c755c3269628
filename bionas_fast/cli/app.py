"""The command line: parse, call the library, print. Results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

import bionas_fast as bf
from bionas_fast.cli.analyze import analyze
from bionas_fast.cli.attack import attack
from bionas_fast.cli.datasets import list_datasets
from bionas_fast.cli.doctor import doctor
from bionas_fast.cli.evaluate import evaluate
from bionas_fast.cli.export import export
from bionas_fast.cli.output import note_down, say, show_messages
from bionas_fast.cli.presets import list_presets
from bionas_fast.cli.report import report
from bionas_fast.cli.reproduce import reproduce
from bionas_fast.cli.runs import list_runs
from bionas_fast.cli.search import search
from bionas_fast.cli.settings import list_settings
from bionas_fast.cli.show import show
from bionas_fast.cli.train import train
from bionas_fast.errors import InputError, PeerLost
from bionas_fast.runtime.launch import launched_rank

app = typer.Typer(
    help=bf.__doc__,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Anywhere: --version; -q, no messages but errors; -v, also warnings of other packages; --log-file FILE, "
    "messages and progress also into a file; --debug, the traceback of an error.",
)
app.command("search")(search)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("export")(export)
app.command("attack")(attack)
app.command("analyze")(analyze)
app.command("reproduce")(reproduce)
app.command("report")(report)
app.command("runs")(list_runs)
app.command("show")(show)
app.command("presets")(list_presets)
app.command("datasets")(list_datasets)
app.command("settings")(list_settings)
app.command("doctor")(doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted."""
    debug = False
    try:
        wanted, arguments = Everywhere.taken_from(sys.argv[1:] if arguments is None else arguments)
        debug = wanted.debug
        if wanted.version:
            print(f"bionas-fast {bf.__version__}")
            sys.exit(0)
        show_messages(wanted.verbosity, wanted.log_file)
        code = app(arguments, prog_name="bionas-fast", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        # The parser's exceptions format their own messages.
        format_message = getattr(error, "format_message", None)
        if debug or not (format_message or isinstance(error, InputError)):
            raise
        # Of several processes, only rank 0 reports bad input; every one reports that another process has died.
        silent = launched_rank() != 0 and not isinstance(error, PeerLost)
        console = Console(stderr=True, quiet=silent)
        message = format_message() if format_message else error
        console.print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
        note_down(f"error: {message}")
        sys.exit(2)


@dataclass(frozen=True)
class Everywhere:
    """The options that may stand anywhere on the command line.

    Attributes:
        verbosity: -1 prints errors and results only, 1 also warnings of other packages.
    """

    version: bool = False
    debug: bool = False
    verbosity: int = 0
    log_file: Path | None = None

    @classmethod
    def taken_from(cls, arguments: Sequence[str]) -> tuple[Everywhere, list[str]]:
        """Take them out of the words of a command line; return them and the other words.

        Raises:
            InputError: --log-file without a file.
        """
        found: dict[str, Any] = {}
        others: list[str] = []
        words = iter(arguments)
        for word in words:
            if word in _SWITCHES:
                found |= _SWITCHES[word]
            elif word == "--log-file":
                file = next(words, None)
                if file is None:
                    raise InputError("--log-file: expected a file")
                found["log_file"] = Path(file)
            else:
                others.append(word)
        return cls(**found), others


_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "--version": {"version": True},
    "--debug": {"debug": True},
    "-q": {"verbosity": -1},
    "--quiet": {"verbosity": -1},
    "-v": {"verbosity": 1},
    "--verbose": {"verbosity": 1},
}
