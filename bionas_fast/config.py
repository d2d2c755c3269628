"""What all configurations share: complete, validated, readable from and writable to YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bionas_fast.errors import InputError, shown, unknown

C = TypeVar("C", bound="Config")

_LARGE = 2**63


class Config(BaseModel):
    """A set of named, typed settings. Unknown names and wrong values raise :class:`InputError`, naming the setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Modules to import first, so that what they register can be named; see :mod:`bionas_fast.plugins`.
    plugins: tuple[str, ...] = ()

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if name not in type(self).model_fields:
                raise unknown("setting", name, type(self).model_fields, type(self).__name__)
            if isinstance(settings[name], int) and abs(settings[name]) >= _LARGE:
                raise InputError(f"{name}: the number is too large")
        try:
            super().__init__(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{place}: {first['msg'].lower()}; got {shown(first['input'])}") from None

    def with_settings(self: C, **settings: Any) -> C:
        """A copy with some settings replaced, validated like new ones."""
        return type(self)(**{**self.model_dump(), **settings})

    def settings(self) -> dict[str, Any]:
        """Plain values, as they are written to a file. The plugins are not among them: no file may have code run."""
        return self.model_dump(mode="json", exclude={"plugins"})


#: What a run notes in its configuration beside the settings.
NOTES = ("kind", "plugins", "network", "machine")
#: The settings that say where and how a run works, not what comes out of it: a resumed run may change them.
UNBINDING = ("data_dir", "download", "device", "checkpoint_every", "tensorboard", "plugins")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; the configuration of a run may serve as one.

    Raises:
        InputError: no such file, not YAML, not a mapping.
    """
    return {name: value for name, value in read_yaml(path).items() if name not in NOTES}


class _Loader(yaml.SafeLoader):
    """Plain values only, and no aliases: with them a few lines can stand for more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"aliases (*{event.anchor}) are not read", event.start_mark)
        return super().compose_node(parent, index)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: no such file, not YAML, not a mapping.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except Exception as error:  # of damaged text the parser raises nearly anything
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{path}{place}: not YAML: {reason or type(error).__name__}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{path}: expected settings, one 'name: value' a line")
    return data
