"""Generator of docs/settings.md: ``python -m bionas_fast.cli.settings_table > docs/settings.md``."""

from __future__ import annotations

from typing import Any

from bionas_fast.cli.options import describe
from bionas_fast.config import Changeable, Option, RunConfig, marker
from bionas_fast.runs.kinds import get_kind, kind_names

_HEAD = """# Settings

A setting is an argument of the configuration class in Python, a line of a YAML file for `--config`, and
`--set NAME=VALUE` on the command line, or the option listed with it. A resumed run may change those marked with *.

This page is generated: `python -m bionas_fast.cli.settings_table > docs/settings.md`.
"""


def settings_page() -> str:
    """Generate the page with the settings of all kinds of run, the shared ones first."""
    configs = {kind: get_kind(kind).settings for kind in kind_names()}
    shared = [n for n in RunConfig.model_fields if len({_row(config, n) for config in configs.values()}) == 1]
    parts = [_HEAD, "## All kinds of run\n", _table(RunConfig, shared)]
    for kind, config in configs.items():
        specific = [name for name in config.model_fields if name not in shared]
        parts += [f"## {config.__name__}: `bionas-fast {get_kind(kind).command}`\n", _table(config, specific)]
    return "\n".join(parts)


def _table(config: type[RunConfig], names: list[str]) -> str:
    rows = [_row(config, name) for name in names]
    return "\n".join(["| setting | default | option | description |", "|---|---|---|---|", *rows]) + "\n"


def _row(config: type[RunConfig], name: str) -> str:
    mark, default = marker(config, name, Option), config.model_fields[name].get_default(call_default_factory=True)
    star = "*" if marker(config, name, Changeable) else ""
    option = f"`{mark.flag(name)}`" if mark else ""
    cells = (f"`{name}`{star}", _plain(default), option, describe(config, name).replace("|", "\\|"))
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> str:
    """Format a value as in YAML."""
    if value is None or value in ((), {}):
        return "–"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(settings_page(), end="")
