"""Presets: named settings, one YAML file each, with their source."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from bionas_fast.errors import unknown


@dataclass(frozen=True)
class Preset:
    """Named settings of one kind of run.

    Attributes:
        name: name of the preset.
        kind: kind of run.
        source: origin of the values.
        settings: the settings that differ from the defaults.
    """

    name: str
    kind: str
    source: str
    settings: dict[str, Any]


def names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of all presets, or of those of one kind."""
    return tuple(preset.name for preset in _presets() if kind in (None, preset.kind))


def get(name: str, kind: str) -> Preset:
    """Look up a preset by name and kind.

    Raises:
        InputError: an unknown name; the message suggests similar ones.
    """
    for preset in _presets():
        if preset.name == name and preset.kind == kind:
            return preset
    raise unknown(f"{kind} preset", name, names(kind))


def _presets() -> list[Preset]:
    files = sorted(p.name for p in resources.files(__name__).iterdir() if p.name.endswith(".yaml"))
    return [_read(file) for file in files]


def _read(file: str) -> Preset:
    data = yaml.safe_load(resources.files(__name__).joinpath(file).read_text(encoding="utf-8"))
    return Preset(file.removesuffix(".yaml"), data.pop("kind"), data.pop("source"), data)
