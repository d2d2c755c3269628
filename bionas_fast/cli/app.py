"""The command line: parse, call the library, print. Results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import functools
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich.console import Console
from rich.table import Table

import bionas_fast as bf
from bionas_fast import backends, presets, report, rules
from bionas_fast.cli.output import QUIET, Bars, err, out, print_comparison, print_lines, print_trained, show_warning
from bionas_fast.config import Config, read_settings, read_yaml
from bionas_fast.data import dataset_names
from bionas_fast.errors import InputError
from bionas_fast.plugins import import_plugins, plugin_options, plugins_explained
from bionas_fast.runs.folder import CONFIG, GENOTYPE, RunFolder, new_path
from bionas_fast.runtime import distributed
from bionas_fast.runtime.machine import machine
from bionas_fast.search import SearchConfig
from bionas_fast.space import Genotype, operation_names, space_names
from bionas_fast.train import SoftHebbConfig, TrainConfig, compare_rules, train, train_softhebb

app = typer.Typer(
    help=bf.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="--debug anywhere shows the traceback of an error.",
)
#: What `train` takes in place of a genotype.
SOFTHEBB = "softhebb"

C = TypeVar("C", bound=Config)
# Options that several commands take.
Preset = Annotated[str | None, typer.Option(help="Named settings; see `bionas-fast presets`.")]
ConfigFile = Annotated[Path | None, typer.Option(help="A YAML file of settings.")]
DataDir = Annotated[str | None, typer.Option(help="The folder that holds the data set.")]
Download = Annotated[bool | None, typer.Option("--download", help="Fetch the data set if it is missing.")]
TensorBoard = Annotated[bool | None, typer.Option("--tensorboard", help="Write the figures for TensorBoard, too.")]
CheckpointEvery = Annotated[float | None, typer.Option(help="Seconds between checkpoints within an epoch.  [60]")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as beta_decay=25; more than once."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="MODULE|FILE.py", help="Import it first: own rules, operations, spaces, data."),
]


def _with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """A command that imports its plugins first, and that names those of a run where they are missing."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = arguments["plugin"] or []
        import_plugins(given)
        with plugins_explained(arguments.get("source"), arguments.get("config"), given=given):
            command(**arguments)

    return run


@app.command("search")
@_with_plugins
def search_command(
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: Annotated[str | None, typer.Option(help="digits, cifar10, …, folder:PATH, npz:FILE  [digits]")] = None,
    data_dir: DataDir = None,
    download: Download = None,
    space: Annotated[str | None, typer.Option(help="bionas, bionas-hl-pc, darts-bp, nb201  [bionas]")] = None,
    method: Annotated[str | None, typer.Option(help="darts, darts2, eg, random, evolution  [darts]")] = None,
    rule_names: Annotated[str | None, typer.Option("--rules", metavar="A,B", help="Only these rules.")] = None,
    operations: Annotated[str | None, typer.Option("--ops", metavar="A,B", help="Only these operations.")] = None,
    epochs: Annotated[int | None, typer.Option(help="[4]")] = None,
    channels: Annotated[int | None, typer.Option(help="C of the first cell.  [4]")] = None,
    cells: Annotated[int | None, typer.Option(help="In all; with nb201, in each stage.  [3]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="[64]")] = None,
    engine: Annotated[str | None, typer.Option(help="stacked, or modular: far slower  [stacked]")] = None,
    seed: Annotated[int | None, typer.Option(help="[0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1  [auto]")] = None,
    amp: Annotated[str | None, typer.Option(help="Mixed precision: off, bf16, fp16  [off]")] = None,
    eg_mode: Annotated[str | None, typer.Option(help="For eg: persistent, published  [persistent]")] = None,
    sets: Sets = None,
    tensorboard: TensorBoard = None,
    checkpoint_every: CheckpointEvery = None,
    plugin: Plugins = None,
    folder: Annotated[Path | None, typer.Option("--out", help="The run folder, new or empty.  [runs/…]")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with the search in this folder.")] = None,
) -> None:
    """Search for an architecture and the learning rule of every layer in it."""
    given = {
        "dataset": dataset,
        "data_dir": data_dir,
        "download": download,
        "space": space,
        "method": method,
        "rules": _split(rule_names),
        "operations": _split(operations),
        "epochs": epochs,
        "channels": channels,
        "cells": cells,
        "batch_size": batch_size,
        "engine": engine,
        "seed": seed,
        "device": device,
        "amp": amp,
        "eg_mode": eg_mode,
        "plugins": plugin,
        "tensorboard": tensorboard,
        "checkpoint_every": checkpoint_every,
        **_parsed(sets),
    }
    typed = _settings("search", preset, config, given)
    settings = SearchConfig(**typed) if resume is None else _resumed(SearchConfig, resume, typed)
    with _interruptible():
        result = bf.search(settings, out=folder, resume=resume, progress=Bars())
    report.draw_genotype(result.genotype, out)
    out.print()
    print_lines(
        {
            "validation accuracy": f"{result.final_metrics['valid_accuracy']:.2f} % (supernet)",
            "time": f"{sum(row['seconds'] for row in result.metrics):.0f} s",
            "run folder": str(result.run_dir),
            "next": shlex.join(["bionas-fast", "train", str(result.run_dir), *plugin_options(plugin or [])]),
        }
    )
    for message in result.messages:
        err.print(f"note: {message}", markup=False, highlight=False, soft_wrap=True)


@app.command("train")
@_with_plugins
def train_command(
    source: Annotated[
        str | None,
        typer.Argument(metavar="RUN|GENOTYPE|softhebb", help="A search's run folder, a genotype, or a network."),
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: Annotated[str | None, typer.Option(help="That of the search, if a run is given, else digits.")] = None,
    data_dir: DataDir = None,
    download: Download = None,
    epochs: Annotated[int | None, typer.Option(help="[20]")] = None,
    channels: Annotated[int | None, typer.Option(help="[8]")] = None,
    cells: Annotated[int | None, typer.Option(help="In all; of nb201, in each stage.  [3]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="[64]")] = None,
    seed: Annotated[int | None, typer.Option(help="[0]")] = None,
    device: Annotated[str | None, typer.Option(help="[auto]")] = None,
    sets: Sets = None,
    tensorboard: TensorBoard = None,
    checkpoint_every: CheckpointEvery = None,
    plugin: Plugins = None,
    rule: Annotated[str | None, typer.Option(help="This rule on every searched edge instead of those found.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train the architecture also under every single rule and print a table.")
    ] = False,
    folder: Annotated[Path | None, typer.Option("--out", help="The run folder, new or empty.  [runs/…]")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with the training in this folder.")] = None,
) -> None:
    """Train what a search found, from scratch, and test it."""
    given = {
        "dataset": dataset,
        "data_dir": data_dir,
        "download": download,
        "epochs": epochs,
        "channels": channels,
        "cells": cells,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "plugins": plugin,
        "tensorboard": tensorboard,
        "checkpoint_every": checkpoint_every,
        **_parsed(sets),
    }
    if resume is not None:
        if compare:
            raise InputError("--compare trains many networks and keeps none of them; leave out --resume")
        _resume_training(source, resume, folder, rule, preset, config, given)
        return
    if source is None:
        raise InputError("what is to be trained? Give a run folder, a genotype or softhebb, or go on with --resume RUN")
    if source == SOFTHEBB:
        if compare:
            raise InputError("--compare is for found networks; train softhebb with one --rule after the other")
        chosen = SoftHebbConfig(**_settings("softhebb", preset, config, given | {"rule": rule}))
        folder = folder or new_path(f"softhebb-{chosen.dataset}-{chosen.rule}")
        with _interruptible():
            learned = train_softhebb(chosen, out=folder, progress=Bars())
        print_trained(learned, {"rule": chosen.rule})
        return
    genotype, searched = _genotype(source)
    if rule is not None:
        genotype = genotype.with_rule(rule)
    inherited = {name: searched[name] for name in ("dataset", "data_dir") if searched.get(name) is not None}
    settings = TrainConfig(**{**inherited, **_settings("train", preset, config, given)})
    if compare:
        if folder is not None:
            raise InputError("--compare trains many networks and writes none of them; leave out --out")
        print_comparison(compare_rules(genotype, settings, progress=Bars()))
        return
    folder = folder or new_path(f"train-{settings.dataset}-{genotype.hash}")
    with _interruptible():
        trained = train(genotype, settings, out=folder, progress=Bars())
    print_trained(trained, {"genotype": genotype.hash})


def _resume_training(
    source: str | None,
    run: Path,
    folder: Path | None,
    rule: str | None,
    preset: str | None,
    config: Path | None,
    given: Mapping[str, Any],
) -> None:
    if read_yaml(RunFolder.open(run).file(CONFIG)).get("kind") == SOFTHEBB:
        if source not in (None, SOFTHEBB):
            raise InputError(f"{run} trains {SOFTHEBB}, not {source}")
        typed = _settings("softhebb", preset, config, {**given, "rule": rule})
        with _interruptible():
            learned = train_softhebb(_resumed(SoftHebbConfig, run, typed), out=folder, resume=run, progress=Bars())
        print_trained(learned, {"rule": str(read_settings(run / CONFIG)["rule"])})
        return
    genotype = None if source is None else _genotype(source)[0]
    if rule is not None:
        genotype = (genotype or _genotype(str(run))[0]).with_rule(rule)
    settings = _resumed(TrainConfig, run, _settings("train", preset, config, given))
    with _interruptible():
        trained = train(genotype, settings, out=folder, resume=run, progress=Bars())
    print_trained(trained, {"genotype": trained.network.genotype.hash})


@app.command("show")
@_with_plugins
def show_command(
    source: Annotated[str, typer.Argument(metavar="RUN|GENOTYPE", help="A run folder or a genotype file.")],
    save: Annotated[Path | None, typer.Option(help="Also draw it into this file, .svg or .png.")] = None,
    plugin: Plugins = None,
) -> None:
    """Draw a genotype."""
    genotype, _ = _genotype(source)
    if save is not None:
        report.draw_figure(genotype, save)
        err.print(f"wrote {save}", highlight=False, soft_wrap=True)
    report.draw_genotype(genotype, out)


@app.command("presets")
def presets_command() -> None:
    """List the presets and the sources they follow."""
    table = Table("preset", "for", "source", box=None, header_style="bold")
    for kind in presets.KINDS:
        for name in presets.names(kind):
            table.add_row(name, kind, presets.get(name, kind).source)
    out.print(table)


@app.command("doctor")
@_with_plugins
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    plugin: Plugins = None,
) -> None:
    """Say what is installed, and what every op runs on here and why."""
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    choices = [backends.explain(op, device) for op in backends.op_names() for device in devices]
    known = {
        "rules": rules.names(),
        "operations": operation_names(),
        "spaces": space_names(),
        "datasets": dataset_names(),
    }
    if as_json:
        ops = [{"op": c.op, "device": c.device, "backend": c.backend, "reasons": dict(c.reasons)} for c in choices]
        print(json.dumps({"machine": machine(), **known, "ops": ops}, indent=2))
        return
    print_lines(machine())
    out.print()
    table = Table("op", "device", "runs on", "why nothing else", box=None, header_style="bold")
    for choice in choices:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.reasons.items())
        table.add_row(choice.op, choice.device, choice.backend, reasons)
    out.print(table)
    out.print()
    print_lines({name: rules.get(name).summary for name in rules.names()})
    out.print()
    print_lines({kind: ", ".join(names) for kind, names in known.items() if kind != "rules"})


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _parsed(sets: Sequence[str] | None) -> dict[str, Any]:
    """``NAME=VALUE``, the value read as YAML."""
    found = {}
    for text in sets or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected NAME=VALUE")
        if name.strip() == "plugins":
            raise InputError("--set plugins: name a module with --plugin")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {text}: {value!r} is no value") from None
    return found


def _settings(kind: str, preset: str | None, config: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Preset, then file, then what was typed; the later wins."""
    settings = dict(presets.get(preset, kind).settings) if preset else {}
    if config is not None:
        settings |= read_settings(config)
    return settings | {name: value for name, value in given.items() if value is not None}


def _genotype(source: str) -> tuple[Genotype, dict[str, Any]]:
    """A genotype from a file or a run folder, and the settings of the run."""
    if not Path(source).is_dir():
        return Genotype.load(source), {}
    folder = RunFolder.open(source)
    return Genotype.load(folder.file(GENOTYPE)), read_settings(folder.file(CONFIG))


def _resumed(kind: type[C], run: Path, typed: Mapping[str, Any]) -> C | None:
    """The settings of a run with what was typed in their place; None, which means the run's own, if nothing was."""
    return kind(**{**read_settings(RunFolder.open(run).file(CONFIG)), **typed}) if typed else None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say how to go on with a run that was stopped, on one line."""
    try:
        yield
    except KeyboardInterrupt as stop:
        err.print(str(stop) or "interrupted", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    warnings.showwarning = show_warning
    try:
        code = app(arguments, prog_name="bionas-fast", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted")
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        # The parser's own complaints know how to say themselves.
        say = getattr(error, "format_message", None)
        if debug or not (say or isinstance(error, InputError)):
            raise
        # What is wrong with the input, the first of several processes says for all.
        own = Console(stderr=True, quiet=QUIET and not isinstance(error, distributed.PeerLost))
        own.print(f"error: {say() if say else error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
