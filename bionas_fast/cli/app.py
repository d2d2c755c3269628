"""The command line: parse, call the library, print. Results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import typer
from rich.console import Console

import bionas_fast as bf
from bionas_fast.cli.analyze import analyze
from bionas_fast.cli.attack import attack
from bionas_fast.cli.doctor import doctor
from bionas_fast.cli.evaluate import evaluate
from bionas_fast.cli.export import export
from bionas_fast.cli.output import err, show_log, show_warning, silence_other_ranks
from bionas_fast.cli.presets import list_presets
from bionas_fast.cli.report import report
from bionas_fast.cli.reproduce import reproduce
from bionas_fast.cli.runs import list_runs
from bionas_fast.cli.search import search
from bionas_fast.cli.show import show
from bionas_fast.cli.train import train
from bionas_fast.errors import InputError
from bionas_fast.runtime import distributed

app = typer.Typer(
    help=bf.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="--debug anywhere shows the traceback of an error.",
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
app.command("doctor")(doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    silence_other_ranks()
    warnings.showwarning = show_warning
    show_log("bionas_fast")
    try:
        code = app(arguments, prog_name="bionas-fast", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted")
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        # The parser's exceptions format their own messages.
        format_message = getattr(error, "format_message", None)
        if debug or not (format_message or isinstance(error, InputError)):
            raise
        # Of several processes, only rank 0 reports bad input; every one reports that another process has died.
        console = Console(stderr=True, quiet=err.quiet and not isinstance(error, distributed.PeerLost))
        message = format_message() if format_message else error
        console.print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
