"""The options of the command line, generated from the settings of a command's kinds of run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
import yaml

from bionas_fast import presets, rules
from bionas_fast.config import Option, RunConfig, RunRecord, marker
from bionas_fast.data import dataset_names
from bionas_fast.errors import InputError, shown
from bionas_fast.plugins import import_plugins, plugins_explained
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.summary import find_runs
from bionas_fast.searching import method_names
from bionas_fast.space import operation_names, space_names

Command = Callable[..., None]
#: Configurations that share a setting, by kind of run; the first one describes it.
Configs = Mapping[str, type[RunConfig]]

#: Settings whose values are registered names, with functions that list these.
_NAMES: Mapping[str, Callable[[], Sequence[str]]] = {
    "dataset": dataset_names,
    "space": space_names,
    "method": method_names,
    "rules": rules.names,
    "operations": operation_names,
}


def describe(config: type[RunConfig], name: str) -> str:
    """Return the description of a setting, including the names registered for it."""
    description = config.model_fields[name].description or ""
    if name not in _NAMES:
        return description
    known = (f"{known}…" if known.endswith(":") else known for known in _NAMES[name]())
    return f"{description} Known: {', '.join(known)}."


def option(name: str, configs: Configs) -> Any:
    """Build the annotation of the command's parameter for a setting."""
    config = next(iter(configs.values()))
    mark = _mark(config, name)
    return Annotated[
        _type(config, name) | None,
        typer.Option(
            mark.flag(name),
            metavar=mark.metavar,
            help=f"{describe(config, name)}{_defaults(name, configs)}",
        ),
    ]


def _mark(config: type[RunConfig], name: str) -> Option:
    mark = marker(config, name, Option)
    assert mark is not None
    return mark


def _type(config: type[RunConfig], name: str) -> Any:
    """Return the type of the option; for several values a list if it is repeatable, else a comma-separated text."""
    annotation = config.model_fields[name].annotation
    if get_origin(annotation) is tuple:
        return list[str] if _mark(config, name).repeated else str
    return next((kind for kind in (annotation, *get_args(annotation)) if kind in (bool, int, float)), str)


def _defaults(name: str, configs: Configs) -> str:
    shown = {kind: _shown(config.model_fields[name].default) for kind, config in configs.items()}
    first = next(iter(shown.values()))
    if any(other != first for other in shown.values()):
        return f"  [{', '.join(f'{kind} {value}' for kind, value in shown.items())}]"
    return f"  [{first}]" if first else ""


def _shown(default: Any) -> str:
    if default is None or default is False or default == ():
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


Preset = Annotated[str | None, typer.Option(help="Named settings; see `bionas-fast presets`.")]
ConfigFile = Annotated[Path | None, typer.Option(help="A YAML file of settings.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as learning_rate=0.1; repeatable."),
]
Plugins = option("plugins", {"": RunConfig})
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; must be new or empty.  [runs/…]")]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Run N seeds, from --seed on, each in a folder of its own, and print their mean and spread. To continue, "
        "give the command again, with the same --out or with --resume.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the settings, measure what the run would cost on this machine, and begin nothing."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN", help="Resume the run in this folder; with several seeds or variants, all that are not complete."
    ),
]


@dataclass(frozen=True)
class Wanted:
    """The folder of a run, and what is wanted of it, as options.

    Attributes:
        folder: the folder of a new run.
        resume: the folder of a run to resume.
        dry_run: whether to print the settings and the costs only.
        as_json: whether to print the result as JSON.
    """

    folder: Out = None
    resume: Resume = None
    dry_run: DryRun = False
    as_json: AsJson = False

    def repeated_folder(self) -> Path | None:
        """Return the folder of runs repeated over seeds, from ``--out`` or ``--resume``; the latter must hold runs.

        Raises:
            InputError: there are no runs to resume; or both were given; or ``--dry-run``, which is for one run.
        """
        if self.dry_run:
            raise InputError("--dry-run: of one run; omit --seeds and --compare, whose runs cost as much each")
        if self.resume is None:
            return self.folder
        if self.folder is not None:
            raise InputError("--out and --resume: give one of them")
        if not find_runs(self.resume):
            raise InputError(f"{self.resume}: no runs to resume; begin them with --out")
        return self.resume


@dataclass(frozen=True)
class Given:
    """The settings that a command was given.

    Attributes:
        preset: the name of a preset.
        file: a YAML file; its settings take precedence over the preset.
        options: the settings given as options; they take precedence over both.
    """

    preset: str | None
    file: Path | None
    options: Mapping[str, Any]

    def with_options(self, **options: Any) -> Given:
        """Return a copy with further options.

        Raises:
            InputError: a setting was given with another value.
        """
        for name, value in options.items():
            if self.options.get(name, value) != value:
                raise InputError(f"{name}: given twice, as {shown(value)} and {shown(self.options[name])}")
        return replace(self, options={**self.options, **options})

    def settings(self, kind: str) -> dict[str, Any]:
        """Merge all settings for a kind of run."""
        given = {} if self.file is None else RunRecord.read(self.file).settings
        given |= dict(self.options)
        if not self.preset:
            return given
        from bionas_fast.searching.checks import over_preset

        return over_preset(presets.get(self.preset, kind).settings, given)

    def recorded(self, kind: str, run: Path | None = None) -> Any:
        """Return the configuration of these settings, or that of a run updated by them."""
        settings = {} if run is None else RunFolder.open(run).read().settings
        return get_kind(kind).settings(**{**settings, **self.settings(kind)})

    def resumed(self, kind: str, run: Path) -> Any:
        """Return the configuration of a run updated by these settings, or None if there are none."""
        return self.recorded(kind, run) if self.settings(kind) else None


def takes_settings(command: str) -> Callable[[Command], Command]:
    """Add an option to a command for each setting marked as one, and ``--preset``, ``--config`` and ``--set``.

    Use as a decorator. The decorated function receives the settings as its first argument, a :class:`Given`.

    Args:
        command: the name of the command; the settings are those of its kinds of run.
    """
    owners: dict[str, dict[str, type[RunConfig]]] = {}
    for kind in kind_names():
        config = get_kind(kind).settings
        names = config.model_fields if get_kind(kind).command == command else ()
        for name in names:
            if marker(config, name, Option):
                owners.setdefault(name, {})[kind] = config
    options = {name: option(name, configs) for name, configs in owners.items()}

    def decorate(function: Command) -> Command:
        def run(preset: str | None, config: Path | None, sets: list[str] | None, **arguments: Any) -> None:
            typed = {name: _split(name, arguments.pop(name), owners[name]) for name in options}
            typed = {name: value for name, value in typed.items() if value is not None}
            function(Given(preset, config, {**_parsed(sets or ()), **typed}), **arguments)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        added = {"preset": Preset, "config": ConfigFile, **options, "sets": Sets}
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            *(inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in added.items()),
            *(parameter.replace(kind=keyword) for parameter in own),
        ]
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def takes_record(name: str, record: type) -> Callable[[Command], Command]:
    """Replace a command's parameter by the fields of a dataclass, one option each; the command receives the dataclass.

    Use as a decorator.

    Args:
        name: the name of the parameter.
        record: the dataclass; its fields are annotated like the parameters of a command, and have defaults.
    """
    kinds = get_type_hints(record, include_extras=True)

    def decorate(function: Command) -> Command:
        def run(*arguments: Any, **options: Any) -> None:
            own = {field.name: options.pop(field.name) for field in fields(record)}
            function(*arguments, **{name: record(**own)}, **options)

        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter(field.name, keyword, default=field.default, annotation=kinds[field.name])
            for field in fields(record)
        ]
        given, *others = inspect.signature(function, eval_str=True).parameters.values()
        kept = [parameter.replace(kind=keyword) for parameter in others if parameter.name != name]
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature([given, *kept, *added])  # type: ignore[attr-defined]
        return run

    return decorate


def with_plugins(command: Command) -> Command:
    """Wrap a command: import its plugins first, and name a run's missing plugins in errors."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = arguments["plugins"] or []
        import_plugins(given)
        named = (arguments.get(name) for name in ("source", "config", "resume"))
        places = (*named, *(arguments.get("sources") or ()), *(arguments.get("runs") or ()))
        with plugins_explained(*places, given=given):
            command(**arguments)

    return run


def _split(name: str, value: Any, configs: Configs) -> Any:
    """Split a comma-separated text if the setting is a tuple."""
    config = next(iter(configs.values()))
    if not isinstance(value, str) or get_origin(config.model_fields[name].annotation) is not tuple:
        return value
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _parsed(sets: Sequence[str]) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` options; values are read as YAML."""
    found = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected NAME=VALUE")
        if name.strip() == "plugins":
            raise InputError("--set plugins: name a module with --plugin")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {text}: {value!r} is not a valid value") from None
    return found
