"""The settings of runs: complete, validated, described, readable from and writable to YAML.

A setting stands in one place, the class of its kind of run: its type, its default, its range, its description, and
whether the command line has an option of its own for it. YAML, Python, ``--help`` and docs/settings.md follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bionas_fast.errors import InputError, shown, unknown

C = TypeVar("C", bound="Config")
M = TypeVar("M")

_LARGE = 2**63


@dataclass(frozen=True)
class Option:
    """Marks a setting that has an option of its own on the command line; the others are set by ``--set NAME=VALUE``.

    Attributes:
        name: by default that of the setting, with hyphens.
        metavar: stands for the value in the help; by default its type.
        repeated: of a setting with several values, whether the option is repeated; otherwise commas stand between them.
    """

    name: str | None = None
    metavar: str | None = None
    repeated: bool = False

    def flag(self, setting: str) -> str:
        """Return the name of the option for that setting, ``--NAME``."""
        return self.name or f"--{setting.replace('_', '-')}"


@dataclass(frozen=True)
class Changeable:
    """Marks a setting that a resumed run may change: where and how it works, not what comes out of it."""


class Config(BaseModel):
    """A set of named, typed settings. Unknown names and wrong values raise :class:`InputError`, naming the setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if name not in type(self).model_fields:
                raise unknown("setting", name, type(self).model_fields, type(self).__name__)
            if isinstance(settings[name], int) and abs(settings[name]) >= _LARGE:
                raise InputError(f"{name}: the number is too large")
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _input_error(error) from None

    def with_settings(self: C, **settings: Any) -> C:
        """Return a copy with some settings replaced, validated like new ones."""
        return type(self)(**{**self.model_dump(), **settings})


def _input_error(error: ValidationError) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # of a validator of ours
        return cause
    place = ".".join(str(part) for part in first["loc"])
    return InputError(f"{place}: {first['msg'].lower()}; got {shown(first['input'])}")


#: Settings of several kinds of run that differ in their defaults.
Epochs = Annotated[int, Field(ge=1, description="Passes over the training images."), Option()]
Channels = Annotated[int, Field(ge=1, description="Channels of the first cell; each reduction doubles them."), Option()]
Cells = Annotated[int, Field(ge=1, description="Cells in all; with nb201, in each of three stages."), Option()]


class RunConfig(Config):
    """The settings that all kinds of run share."""

    dataset: Annotated[str, Option()] = Field("digits", description="The dataset.")
    data_dir: Annotated[str | None, Option(), Changeable()] = Field(
        None, description="The folder that holds the dataset."
    )
    download: Annotated[bool, Option(), Changeable()] = Field(False, description="Fetch the dataset if it is missing.")
    epochs: Epochs
    batch_size: Annotated[int, Option()] = Field(64, ge=1, description="Images in a batch, over all processes.")
    seed: Annotated[int, Option()] = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of the weights, the feedback, the order of images and all else that is random.",
    )
    device: Annotated[str, Option(), Changeable()] = Field("auto", description="The device: auto, cpu, cuda or cuda:1.")
    checkpoint_every: Annotated[float, Option(), Changeable()] = Field(
        60.0, ge=0, description="Seconds between checkpoints within an epoch; every epoch ends with one, too."
    )
    tensorboard: Annotated[bool, Option(), Changeable()] = Field(
        False, description="Write the metrics for TensorBoard, too; its package must be installed."
    )
    plugins: Annotated[tuple[str, ...], Option("--plugin", "MODULE|FILE.py", repeated=True), Changeable()] = Field(
        (),
        description="Module or file to import first, which registers rules, operations, spaces, datasets or methods.",
    )

    def settings(self) -> dict[str, Any]:
        """Return plain values, as they are written to a file, without plugins: no file may have code run."""
        return self.model_dump(mode="json", exclude={"plugins"})


class DescentConfig(RunConfig):
    """The settings of networks trained by stochastic gradient descent on augmented images."""

    learning_rate: float = Field(0.025, gt=0, description="Learning rate of the first epoch; a cosine lowers it.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the gradient descent.")
    weight_decay: float = Field(3e-4, ge=0, description="L2 penalty of the weights.")
    gradient_clip: float = Field(5.0, gt=0, description="Largest norm of the weights' gradient.")
    flip: bool = Field(False, description="Mirror training images at random.")
    crop_padding: int = Field(0, ge=0, description="Pad training images by this many pixels and crop them at random.")
    cutout: int = Field(0, ge=0, description="Edge of the square that cutout blanks, in pixels; 0 for none.")


def marker(config: type[Config], name: str, kind: type[M]) -> M | None:
    """Return the mark of that type on a setting, if there is one."""
    marks = config.model_fields[name].metadata
    return next((mark for mark in marks if isinstance(mark, kind)), None)


def changeable(config: type[Config]) -> tuple[str, ...]:
    """Return the names of the settings that a resumed run may change."""
    return tuple(name for name in config.model_fields if marker(config, name, Changeable))


#: The file of a run folder that holds its settings.
CONFIG = "config.yaml"
#: The entries of that file that are no settings.
_NO_SETTINGS = ("kind", "plugins", "network", "machine")


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's :data:`CONFIG`, or of another file of settings, parsed once.

    Nothing but its YAML is checked: users of an entry check it.

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
        content = _read_yaml(path)
        plugins, machine = content.get("plugins"), content.get("machine")
        return cls(
            path=path,
            kind=content.get("kind"),
            settings={name: value for name, value in content.items() if name not in _NO_SETTINGS},
            plugins=tuple(filter(_is_name, plugins)) if isinstance(plugins, list) else (),
            network=content.get("network"),
            machine=machine if isinstance(machine, dict) else {},
        )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


class _Loader(yaml.SafeLoader):
    """Plain values only, and no aliases: with them a few lines can stand for more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"aliases (*{event.anchor}) are not read", event.start_mark)
        return super().compose_node(parent, index)


def _read_yaml(path: str | Path) -> dict[str, Any]:
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
