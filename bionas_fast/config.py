"""What all configurations share: complete, validated, readable from and writable to YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bionas_fast.errors import InputError, unknown

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A set of named, typed settings. Unknown names and wrong values raise :class:`InputError`, naming the setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Modules to import first, so that what they register can be named; see :mod:`bionas_fast.plugins`.
    plugins: tuple[str, ...] = ()

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if name not in type(self).model_fields:
                raise unknown("setting", name, type(self).model_fields, type(self).__name__)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{place}: {first['msg'].lower()}; got {first['input']!r:.80}") from None

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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: no such file, not YAML, not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{path}: expected settings, one 'name: value' a line")
    return data
