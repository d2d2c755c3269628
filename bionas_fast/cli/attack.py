"""``bionas-fast attack``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bionas_fast as bf
from bionas_fast.cli.options import AsJson, Plugins, takes_record, with_plugins
from bionas_fast.cli.output import interruptible, out, print_json, print_lines, print_table, progress, say
from bionas_fast.cli.sources import named_runs
from bionas_fast.config import RunConfig
from bionas_fast.errors import InputError, Interrupted
from bionas_fast.robustness.attacks import attack_names, parse_attack
from bionas_fast.robustness.config import AttackConfig
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.folder import NewFolder
from bionas_fast.runs.kinds import get_kind

if TYPE_CHECKING:
    from torch import nn

    from bionas_fast.data import AnyDataset

PLOT = "accuracy.svg"
#: The folder, inside that of the results, of the network that transfer attacks are computed on.
SUBSTITUTE = "bp-substitute"
_DEFAULTS = AttackConfig()


@dataclass(frozen=True)
class Attacker:
    """The settings of an attack, as options."""

    attacks: Annotated[
        str, typer.Option(help=f"Attacks, such as pgd-10 with its steps: {', '.join(attack_names())}.")
    ] = ",".join(_DEFAULTS.attacks)
    gradient: Annotated[
        str, typer.Option(help="Gradient of the attacker: feedback (that the network learns by), true, or both.")
    ] = _DEFAULTS.gradient
    eps: Annotated[str, typer.Option(help="Largest change of a pixel; several for a curve.")] = "8/255"
    step_size: Annotated[str, typer.Option(help="Change of a pixel per step of pgd and tpgd.")] = "2/255"
    images: Annotated[int, typer.Option(help="Number of test images.")] = _DEFAULTS.images
    targeted: Annotated[bool, typer.Option("--targeted", help="Aim at a random other class.")] = False
    restarts: Annotated[int, typer.Option(help="Repetitions with further seeds; one that succeeds counts.")] = 1
    eot: Annotated[int, typer.Option(help="Passes with redrawn feedback that are averaged; 0: feedback as it is.")] = 0
    batch_size: Annotated[int, typer.Option(help="Images attacked at a time.")] = _DEFAULTS.batch_size
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0

    def config(self) -> AttackConfig:
        """Return the settings.

        Raises:
            InputError: a setting out of range, or no number.
        """
        given: dict[str, Any] = asdict(self)
        given["attacks"] = tuple(name.strip() for name in self.attacks.split(","))
        given["eps"] = tuple(_number("eps", text) for text in self.eps.split(","))
        given["step_size"] = _number("step_size", self.step_size)
        return AttackConfig(**given)


@with_plugins
@takes_record("attacker", Attacker)
def attack(
    runs: Annotated[list[str], typer.Argument(metavar="[NAME=]RUN…", help="Folders of training runs.")],
    attacker: Attacker,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Training run of the network that `transfer` is computed on; by default one is trained."
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:1.")] = "auto",
    as_json: AsJson = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; the same continues an attack.  [runs/…]")
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Attack trained networks, through the feedback they learn by and through the true gradient.

    Robust accuracy with its interval for every attack, network and gradient; their difference, blindness; and warnings
    where the figures overstate robustness. Only images that a network classifies correctly are attacked.
    """
    from bionas_fast.report.figure import render
    from bionas_fast.report.robustness import accuracy_figure
    from bionas_fast.robustness import table as tables
    from bionas_fast.runtime.device import resolve_device
    from bionas_fast.training.loading import expect_trained

    config, named, where = attacker.config(), named_runs(runs), resolve_device(device)
    transferred = any(parse_attack(name).family.transferred for name in config.attacks)
    bf.robustness.expect_possible(config, transferred)
    run, data = _trained_on(named, data_dir, plugins or ())
    if source is not None:
        bf.data.expect_shape(data, expect_trained(source).read().network)
    networks = {name: bf.load(path, plugins=plugins or ()) for name, path in named.items()}
    crafted_on = None if source is None else bf.load(source, plugins=plugins or ())
    path = NewFolder("attack-" + "-".join(named)).make() if folder is None else folder
    results: dict[str, bf.robustness.Robustness] = {}
    place = SUBSTITUTE
    with interruptible():
        try:
            if transferred and crafted_on is None:
                crafted_on = _substitute(run, data, path / SUBSTITUTE, plugins or ())
            crafted_on = None if crafted_on is None else crafted_on.to(where)
            for place, network in networks.items():
                say(f"attacking {place}")
                results[place] = bf.attack(
                    network.to(where), data, config, source=crafted_on, out=path / place, progress=progress()
                )
        except KeyboardInterrupt:
            again = f"give the same command with --out {shlex.quote(str(path))}"
            raise Interrupted(f"interrupted in {place}; to continue, {again}") from None
    tables.write(results, path)
    records = tables.records(results)
    if any(record["eps"] is not None for record in records):
        write_atomic(path / PLOT, render(accuracy_figure(records), "svg"))
    if as_json:
        print_json(records)
        return
    print_table(tables.rows(results))
    out.print()
    for name, own in results.items():
        for warning in own.warnings:
            say(f"warning: {name}: {warning}")
    print_lines({"legend": tables.legend(results), "folder": str(path)})


def _trained_on(named: dict[str, Path], data_dir: Path | None, plugins: Sequence[str]) -> tuple[RunConfig, AnyDataset]:
    """Return the settings of the first run, and the dataset that all runs were trained on, read as that run reads it.

    Raises:
        InputError: a run without a trained network; several datasets; a dataset that is missing or has changed.
    """
    from bionas_fast.training.loading import expect_trained

    records = {name: expect_trained(run).read() for name, run in named.items()}
    datasets = {name: str(record.settings.get("dataset")) for name, record in records.items()}
    if len(set(datasets.values())) > 1:
        known = ", ".join(f"{name}: {dataset}" for name, dataset in datasets.items())
        raise InputError(f"expected runs with the same dataset, got {known}")
    first = next(iter(records.values()))
    settings = {**first.settings, "download": False, "plugins": tuple(plugins)}
    if data_dir is not None:
        settings["data_dir"] = str(data_dir)
    config = get_kind(first.kind).settings(**settings)
    data = bf.data.configured(config)
    bf.data.expect_shape(data, first.network)
    return config, data


def _substitute(run: RunConfig, data: AnyDataset, path: Path, plugins: Sequence[str]) -> nn.Module:
    """Train a network under back-propagation that transfer attacks are computed on, unless that has been done."""
    from bionas_fast.training.substitute import substitute_config, train_substitute

    config = substitute_config(run, data)
    text = f"transfer: computed on a {config.architecture} that {config.epochs} epochs of bp train in {path}"
    say(f"{text}; --source RUN takes another network")
    return train_substitute(config, path, plugins=plugins, progress=progress())


def _number(name: str, text: str) -> float:
    """Read a number or a fraction such as 8/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{name}: expected a number such as 0.03 or 8/255, got {text!r}") from None
