"""``bionas-fast presets``."""

from __future__ import annotations

from rich.table import Table

from bionas_fast import presets
from bionas_fast.cli.output import out
from bionas_fast.runs.kinds import kind_names


def list_presets() -> None:
    """List the presets and the sources they follow."""
    table = Table("preset", "for", "source", box=None, header_style="bold")
    for kind in kind_names():
        for name in presets.names(kind):
            table.add_row(name, kind, presets.get(name, kind).source)
    out.print(table)
