"""Presets: named settings, one YAML file each, with their source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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


def every() -> tuple[Preset, ...]:
    """Return all presets, in the order of their names."""
    return _presets()


def names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of all presets, or of those of one kind."""
    return tuple(preset.name for preset in _presets() if kind in (None, preset.kind))


def get(name: str, kind: str | None = None) -> Preset:
    """Look up a preset by name.

    Args:
        name: its name.
        kind: the kind of run that it must be for; by default any.

    Raises:
        InputError: an unknown name; the message suggests similar ones.
    """
    for preset in _presets():
        if preset.name == name and kind in (None, preset.kind):
            return preset
    raise unknown(f"{kind} preset" if kind else "preset", name, names(kind))


@cache
def _presets() -> tuple[Preset, ...]:
    files = sorted(p.name for p in resources.files(__name__).iterdir() if p.name.endswith(".yaml"))
    return tuple(_read(file) for file in files)


def _read(file: str) -> Preset:
    data = yaml.safe_load(resources.files(__name__).joinpath(file).read_text(encoding="utf-8"))
    return Preset(file.removesuffix(".yaml"), data.pop("kind"), data.pop("source"), data)
