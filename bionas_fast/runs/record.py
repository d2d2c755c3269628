"""The description of a run: its ``config.yaml``, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bionas_fast.config import NOTES, read_yaml


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's ``config.yaml``. Nothing but its YAML is checked: users of an entry check it.

    Attributes:
        path: the file.
        kind: the name of the kind of run; see :mod:`bionas_fast.runs.kinds`.
        settings: the settings by name, as they were written.
        plugins: the modules that the run imported; entries that name none are dropped.
        network: the arguments of the network that follow from the data; None where none were recorded.
        machine: the machine that the run computed on; empty where none was recorded.
    """

    path: Path
    kind: Any
    settings: dict[str, Any]
    plugins: tuple[str, ...]
    network: Any
    machine: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a run's configuration.

        Raises:
            InputError: no such file, not YAML, not a mapping.
        """
        content = read_yaml(path)
        plugins, machine = content.get("plugins"), content.get("machine")
        return cls(
            path=path,
            kind=content.get("kind"),
            settings={name: value for name, value in content.items() if name not in NOTES},
            plugins=tuple(filter(_is_name, plugins)) if isinstance(plugins, list) else (),
            network=content.get("network"),
            machine=machine if isinstance(machine, dict) else {},
        )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()
