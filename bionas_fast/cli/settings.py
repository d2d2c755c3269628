"""``bionas-fast settings``."""

from __future__ import annotations

from typing import Annotated

import typer

from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import out, print_entry, print_json
from bionas_fast.cli.settings_table import Setting, settings_of
from bionas_fast.errors import unknown
from bionas_fast.runs.kinds import get_kind, kind_names


@with_plugins
def list_settings(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Of this kind of run only.")] = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """List all settings of runs: meaning, default, values, and the option of each that has one.

    Settings without an option are given as --set NAME=VALUE, or in a file for --config.
    """
    if kind is not None and kind not in kind_names():
        raise unknown("kind of run", kind, kind_names())
    found = {name: settings_of(get_kind(name).settings) for name in kind_names() if kind in (None, name)}
    if as_json:
        print_json({name: [setting._asdict() for setting in settings] for name, settings in found.items()})
        return
    for name, settings in found.items():
        _print(f"{name}: bionas-fast {get_kind(name).command}", settings)


def _print(title: str, settings: list[Setting]) -> None:
    out.print(f"{title}\n", markup=False, highlight=False)
    for setting in settings:
        print_entry(" = ".join(filter(None, (setting.name, setting.default))), setting.meaning, setting.values)
    out.print()
