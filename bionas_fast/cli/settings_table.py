"""Generator of docs/settings.md: ``python -m bionas_fast.cli.settings_table > docs/settings.md``."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

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
    return "\n".join(["| setting | default | values | option | description |", "|---|---|---|---|---|", *rows]) + "\n"


def _row(config: type[RunConfig], name: str) -> str:
    own, star = _setting(config, name), "*" if marker(config, name, Changeable) else ""
    default, values, option = (f"`{text}`" if text else "–" for text in (own.default, own.values, own.option))
    cells = (f"`{name}`{star}", default, values, option, own.meaning)
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


class Setting(NamedTuple):
    """A setting, for people.

    Attributes:
        default: as in YAML; empty for none.
        values: the values that it can have.
        option: the option of the command line; empty if there is none.
    """

    name: str
    default: str
    values: str
    option: str
    meaning: str


def settings_of(config: type[RunConfig]) -> list[Setting]:
    """Describe all settings of a kind of run."""
    return [_setting(config, name) for name in config.model_fields]


def _setting(config: type[RunConfig], name: str) -> Setting:
    field, mark = config.model_fields[name], marker(config, name, Option)
    default = _plain(field.get_default(call_default_factory=True))
    return Setting(name, default, _values(field), mark.flag(name) if mark else "", describe(config, name))


def _plain(value: Any) -> str:
    """Format a value as in YAML."""
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(field: FieldInfo) -> str:
    """Describe the type of a setting and its limits."""
    limits = {type(limit): limit for limit in field.metadata}
    low, above = (getattr(limits.get(kind), key, None) for kind, key in ((Ge, "ge"), (Gt, "gt")))
    high, below = (getattr(limits.get(kind), key, None) for kind, key in ((Le, "le"), (Lt, "lt")))
    bounds = [f"≥ {low}" if low is not None else "", f"> {above}" if above is not None else ""]
    bounds += [f"≤ {high}" if high is not None else "", f"< {below}" if below is not None else ""]
    return ", ".join([_type(field.annotation), *filter(None, bounds)])


def _type(annotation: Any) -> str:
    """Describe a type in the words of YAML."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " | ".join("null" if part is NoneType else _type(part) for part in parts)
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if origin in (dict, Mapping):
        return "mapping"
    if origin is Annotated:
        return _type(parts[0])
    return {bool: "true | false", int: "integer", float: "number"}.get(annotation, "text")


if __name__ == "__main__":
    print(settings_page(), end="")
