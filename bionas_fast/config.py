"""The settings of runs: complete, validated, described, readable from and writable to YAML.

A setting is defined once, in the class of its kind of run: type, default, range, description, and whether it has a
command-line option. YAML, Python, ``--help`` and docs/settings.md are derived from this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from bionas_fast.choices import Products
from bionas_fast.errors import InputError, near, shown, unknown

C = TypeVar("C", bound="Config")
M = TypeVar("M")

_LARGE = 2**63
#: A value of a setting that is one of several words, in messages of pydantic.
_WORD = re.compile(r"'([^']*)'")


@dataclass(frozen=True)
class Option:
    """Marker of a setting with a command-line option; the others are set by ``--set NAME=VALUE``.

    Attributes:
        name: name of the option; by default that of the setting, with hyphens.
        metavar: placeholder of the value in the help; by default its type.
        repeated: whether the option is repeated for several values; otherwise they are separated by commas.
    """

    name: str | None = None
    metavar: str | None = None
    repeated: bool = False

    def flag(self, setting: str) -> str:
        """Return the option of a setting, ``--NAME``."""
        return self.name or f"--{setting.replace('_', '-')}"


@dataclass(frozen=True)
class Changeable:
    """Marker of a setting that a resumed run may change because it does not affect the result."""


class Config(BaseModel):
    """A set of named, typed settings. Unknown names and invalid values raise :class:`InputError`.

    Numbers must be finite, and True and False are no numbers.
    """

    # A schema takes long to build, and listing the settings needs none.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if name not in type(self).model_fields:
                raise unknown("setting", name, type(self).model_fields, type(self).__name__)
            if settings[name] is False and "off" in get_args(type(self).model_fields[name].annotation):
                settings[name] = "off"  # which YAML reads as False
            for number in _numbers(settings[name]):
                if isinstance(number, bool) and not _takes_bool(type(self).model_fields[name].annotation):
                    raise InputError(f"{name}: expected a number or text, got {number}")
                if isinstance(number, int) and abs(number) >= _LARGE:
                    raise InputError(f"{name}: the number is too large")
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _input_error(error) from None

    def with_settings(self: C, **settings: Any) -> C:
        """Return a copy with some settings replaced, validated like new ones."""
        return type(self)(**{**self.model_dump(), **settings})


def _numbers(value: Any) -> Iterator[Any]:
    """Yield a value, or the entries of a sequence."""
    if isinstance(value, (list, tuple)):
        yield from value
    else:
        yield value


def _takes_bool(annotation: Any) -> bool:
    return annotation is Any or bool in (annotation, *get_args(annotation))


def _input_error(error: ValidationError) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # raised by a validator
        return cause
    place = ".".join(str(part) for part in first["loc"])
    hint = near(first["input"], _WORD.findall(first["ctx"]["expected"])) if first["type"] == "literal_error" else ""
    return InputError(f"{place}: {first['msg'].lower()}; got {shown(first['input'])}{hint and f'; {hint}'}".rstrip())


#: Settings shared by several kinds of run, with different defaults.
Epochs = Annotated[int, Field(ge=1, le=1_000_000, description="Passes over the training images."), Option()]
Channels = Annotated[
    int, Field(ge=1, le=4096, description="Channels of the first cell; doubled by each reduction."), Option()
]
Cells = Annotated[int, Field(ge=1, le=200, description="Number of cells; with nb201, per stage."), Option()]
SkipRules = Annotated[
    bool, Field(description="Let skip connections learn by their rule; the code published with the paper does not.")
]
#: Steps, penalties and coefficients: beyond any useful value, but far from the range of float32.
Rate = Annotated[float, Field(gt=0, le=1e6)]
Coefficient = Annotated[float, Field(ge=0, le=1e6)]


#: Pixels of a side, fraction of an area, and the largest changes of colours.
ImageSide = Annotated[int, Field(ge=1, le=16_384)]
Area = Annotated[float, Field(gt=0, le=1)]
Jitter = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]


@dataclass(frozen=True)
class Work:
    """The work of a phase of a run.

    Attributes:
        epochs: number of epochs.
        images: number of training images.
        batch_size: images per batch, if there are as many.
        evaluated: number of images that are evaluated at a time.
        evaluate_every: epochs between evaluations; the last epoch ends with one.
    """

    epochs: int
    images: int
    batch_size: int
    evaluated: int
    evaluate_every: int = 1

    @property
    def steps(self) -> int:
        """Training steps per epoch; an incomplete batch is left out."""
        return self.images // max(1, self.taken)

    @property
    def taken(self) -> int:
        """Images per step, not more than there are."""
        return min(self.batch_size, self.images)

    @property
    def evaluations(self) -> int:
        """The number of evaluations."""
        return -(-self.epochs // self.evaluate_every)


class RunConfig(Config):
    """The settings common to all kinds of run."""

    dataset: Annotated[str, Option()] = Field("digits", description="Name of the dataset.")
    data_dir: Annotated[str | None, Option(), Changeable()] = Field(None, description="Folder of the dataset.")
    download: Annotated[bool, Option(), Changeable()] = Field(
        False, description="Download the dataset if it is missing."
    )
    epochs: Epochs
    batch_size: Annotated[int, Option()] = Field(
        64, ge=1, le=1_000_000, description="Images per batch, over all processes."
    )
    seed: Annotated[int, Option()] = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of everything random: weights, feedback, order of images.",
    )
    device: Annotated[str, Option(), Changeable()] = Field("auto", description="Device: auto, cpu, cuda or cuda:1.")
    precision: Annotated[Products, Option()] = Field(
        "ieee",
        description="Products of float32 numbers on CUDA devices: ieee, or tf32, faster, of factors with 11 bits.",
    )
    deterministic: Annotated[bool, Option()] = Field(
        False,
        description="Repeat and resume bit for bit on CUDA devices, too, by deterministic algorithms; an operation "
        "without one ends the run. On the CPU every run does.",
    )
    checkpoint_every: Annotated[float, Option(), Changeable()] = Field(
        60.0, ge=0, description="Seconds between checkpoints within an epoch; each epoch also ends with one."
    )
    tensorboard: Annotated[bool, Option(), Changeable()] = Field(
        False,
        description="Also write metrics, distributions and pictures for TensorBoard; its package must be installed.",
    )
    loggers: Annotated[tuple[str, ...], Option("--logger", "NAME", repeated=True), Changeable()] = Field(
        (), description="Loggers, which installed packages provide, under the entry points bionas_fast.loggers."
    )
    plugins: Annotated[tuple[str, ...], Option("--plugin", "MODULE|FILE.py", repeated=True), Changeable()] = Field(
        (),
        description="Module or file to import first; it registers rules, operations, spaces, datasets or methods.",
    )

    def work(self, images: int, test_images: int) -> tuple[Work, ...]:
        """Return the work of each phase of a run on a dataset of this size."""
        raise NotImplementedError(f"{type(self).__name__} defines no work()")

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values for a file, without plugins and loggers: a file must not run code."""
        return self.model_dump(mode="json", exclude={"plugins", "loggers"})


#: The settings that say how images are read from files, and whether they are.
FILE_SETTINGS = ("in_memory", "image_size", "image_resize", "crop_scale", "color_jitter", "decoded_size")


class DescentConfig(RunConfig):
    """The settings of networks trained by stochastic gradient descent on augmented images."""

    learning_rate: Rate = Field(0.025, description="Initial learning rate; follows a cosine schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: Coefficient = Field(3e-4, description="Weight decay (L2 penalty) of the weights.")
    gradient_clip: float = Field(5.0, gt=0, description="Maximum norm of the gradient of the weights.")
    mirror_every: int = Field(
        1,
        ge=0,
        description="Epochs between the pauses in which rule wm learns its feedback, of which the first is before "
        "training; 0: no pauses.",
    )
    mirror_steps: int = Field(200, ge=1, description="Steps of a pause in which rule wm learns its feedback.")
    flip: bool = Field(False, description="Mirror training images left to right at random.")
    crop_padding: int = Field(
        0, ge=0, le=256, description="Pad training images by this many pixels and crop them at random."
    )
    cutout: int = Field(0, ge=0, le=10_000, description="Side of the square blanked by cutout, in pixels; 0 for none.")
    in_memory: bool | None = Field(
        None,
        description="Whether the images of a folder are read into memory; by default if they need at most 2 GiB. "
        "Otherwise they are read from their files in batches.",
    )
    workers: Annotated[int | None, Option(), Changeable()] = Field(
        None, ge=0, le=1024, description="Processes that read images from files; by default one per core, at most 16."
    )
    image_size: ImageSide = Field(224, description="Height and width of images that are read from files, in pixels.")
    image_resize: ImageSide = Field(
        256, description="Shorter side to which test images from files are scaled before the central crop, in pixels."
    )
    crop_scale: tuple[Area, Area] = Field(
        (0.08, 1.0), description="Smallest and largest area of the random crop of training images from files."
    )
    color_jitter: tuple[Jitter, Jitter, Jitter, Hue] = Field(
        (0.0, 0.0, 0.0, 0.0),
        description="Random changes of brightness, contrast, saturation and hue of training images from files.",
    )
    decoded_size: int = Field(
        0,
        ge=0,
        le=16_384,
        description="Shorter side to which images from files are scaled once, to be kept decoded in decoded_dir; "
        "0 decodes them in every epoch.",
    )
    decoded_dir: Annotated[str | None, Changeable()] = Field(
        None, description="Folder of decoded images; by default bionas-fast in XDG_CACHE_HOME or ~/.cache."
    )

    @model_validator(mode="after")
    def _expect_sizes_that_fit(self) -> Self:
        if self.image_resize < self.image_size:
            raise InputError(f"image_resize: expected at least image_size ({self.image_size}), got {self.image_resize}")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise InputError(f"crop_scale: expected the smaller area first, got {list(self.crop_scale)}")
        return self


def marker(config: type[Config], name: str, kind: type[M]) -> M | None:
    """Return the marker of type ``kind`` on a setting, or None."""
    marks = config.model_fields[name].metadata
    return next((mark for mark in marks if isinstance(mark, kind)), None)


def changeable(config: type[Config]) -> tuple[str, ...]:
    """Return the names of the settings that a resumed run may change."""
    return tuple(name for name in config.model_fields if marker(config, name, Changeable))


#: The settings file of a run folder.
CONFIG = "config.yaml"
#: The entries of that file that are not settings.
_NO_SETTINGS = ("kind", "plugins", "network", "machine", "duration")


@dataclass(frozen=True)
class Duration:
    """The time that a run has taken.

    Attributes:
        wall: in seconds, while one of its processes ran.
        processor: of all processors and processes together, in seconds.
    """

    wall: float = 0.0
    processor: float = 0.0

    @classmethod
    def read(cls, entry: Any) -> Duration | None:
        """Read the entry of a run's configuration; None if it is missing or damaged."""
        if not isinstance(entry, dict):
            return None
        wall, processor = entry.get("wall_seconds"), entry.get("processor_seconds")
        if not (isinstance(wall, (int, float)) and isinstance(processor, (int, float))):
            return None
        return cls(float(wall), float(processor)) if 0 <= wall < _LARGE and 0 <= processor < _LARGE else None

    def entry(self) -> dict[str, float]:
        """Return the entry that :meth:`read` reads."""
        return {"wall_seconds": round(self.wall, 3), "processor_seconds": round(self.processor, 3)}

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.wall + other.wall, self.processor + other.processor)


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's :data:`CONFIG`, or of another settings file, parsed once.

    Only its YAML is checked; users of an entry validate it.

    Attributes:
        path: the file.
        kind: name of the kind of run; see :mod:`bionas_fast.runs.kinds`.
        settings: the settings by name, as written.
        plugins: the modules imported by the run; invalid entries are dropped.
        network: arguments of the network that follow from the data; None if not recorded.
        machine: properties of the machine of the run; empty if not recorded.
        duration: the time that the run has taken up to its last checkpoint, over all resumes; None if not recorded.
    """

    path: Path
    kind: Any
    settings: dict[str, Any]
    plugins: tuple[str, ...]
    network: Any
    machine: Mapping[str, Any]
    duration: Duration | None = None

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
            duration=Duration.read(content.get("duration")),
        )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


class _Loader(yaml.SafeLoader):
    """A loader of plain values without aliases, by which a few lines could expand to more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"aliases (*{event.anchor}) are not supported", event.start_mark
            )
        return super().compose_node(parent, index)


def _read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        InputError: no such file, not YAML, not a mapping.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except Exception as error:  # on malformed text the parser raises nearly anything
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{path}{place}: not YAML: {reason or type(error).__name__}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{path}: expected settings, one 'name: value' per line")
    return data
