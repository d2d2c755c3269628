"""``bionas-fast train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import bionas_fast as bf
from bionas_fast.cli.options import Given, Out, Resume, takes_settings, with_plugins
from bionas_fast.cli.output import Bars, interruptible, print_comparison, print_trained
from bionas_fast.cli.show import read_genotype
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import NewFolder, RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.trainer import Trainer

#: The names of networks other than genotypes, from the kinds of run.
_NETWORKS: Mapping[str, type[Trainer]] = {
    word: trainer for trainer in map(get_kind, kind_names()) for word in trainer.sources
}
#: The settings of a run that are the defaults of training its genotype, and those that must be the same in both.
_DEFAULTS = ("dataset", "data_dir")
_AGREED = ("skip_rules", "initialisation")
Source = Annotated[
    str | None,
    typer.Argument(
        metavar="|".join(("RUN", "GENOTYPE", *_NETWORKS)), help="Run folder of a search, genotype file, or network."
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="Use this rule on every searched edge (fa, dfa: except skip connections); for a ResNet, on every layer; "
        "for softhebb, on the filters."
    ),
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also train the architecture under each single rule, and print a table.")
]


@with_plugins
@takes_settings("train")
def train(
    given: Given,
    source: Source = None,
    rule: Rule = None,
    compare: Compare = False,
    folder: Out = None,
    resume: Resume = None,
) -> None:
    """Train the genotype of a search, or another network, from scratch and test it.

    The dataset and its folder default to those of the search; skip_rules and initialisation are those of the search.
    """
    if compare and (resume is not None or folder is not None):
        raise InputError("--compare trains several networks and saves none: omit --resume and --out")
    if source is None and resume is None:
        words = " or ".join(("a genotype", *_NETWORKS))
        raise InputError(f"nothing to train: give a run folder, {words}, or resume a run with --resume RUN")
    network = _network(source, resume)
    if network is None and compare:
        genotype, config = _genotype(given, str(source), rule)
        print_comparison(bf.compare_rules(genotype, config, progress=Bars()))
    elif network is None:
        _train_genotype(given, source, rule, folder, resume)
    elif compare:
        raise InputError(f"--compare needs a genotype; for {network.kind}, train each --rule separately")
    else:
        if source is not None:
            given = given.with_options(**network.settings_of_source(source))
        _train_network(network, given, rule, folder, resume)


def _network(source: str | None, resume: Path | None) -> type[Trainer] | None:
    """Return the kind of run that trains the named network; None for genotypes."""
    if resume is None:
        return _NETWORKS.get(str(source))
    kind = RunFolder.open(resume).read().kind
    network = next((trainer for trainer in _NETWORKS.values() if trainer.kind == kind), None)
    if network is not None and source not in (None, *network.sources):
        raise InputError(f"{resume} trains {network.kind}, not {source}")
    return network


def _train_network(
    trainer: type[Trainer], given: Given, rule: str | None, folder: Path | None, resume: Path | None
) -> None:
    if rule is not None:
        given = given.with_options(rule=rule)
    out: Path | NewFolder | None = folder
    if resume is None:
        config: Any = trainer.settings(**given.settings(trainer.kind))
        out = folder or NewFolder(f"{trainer.kind}-{config.dataset}-{config.rule}")
    else:
        config = given.resumed(trainer.kind, resume)
    with interruptible():
        result = trainer.start(config, out=out, resume=resume, progress=Bars())
    print_trained(result, {"rule": str(RunFolder.open(result.run_dir).read().settings["rule"])})


def _train_genotype(
    given: Given, source: str | None, rule: str | None, folder: Path | None, resume: Path | None
) -> None:
    genotype: bf.Genotype | None
    out: Path | NewFolder | None = folder
    if resume is None:
        genotype, config = _genotype(given, str(source), rule)
        out = folder or NewFolder(f"train-{config.dataset}-{genotype.hash}")
    else:
        genotype = None if source is None else read_genotype(source)
        if rule is not None:
            genotype = (genotype or read_genotype(resume)).with_rule(rule)
        config = given.resumed("train", resume)
    with interruptible():
        result = bf.train(genotype, config, out=out, resume=resume, progress=Bars())
    print_trained(result, {"genotype": result.network.genotype.hash})


def _genotype(given: Given, source: str, rule: str | None) -> tuple[bf.Genotype, bf.TrainConfig]:
    """Read a genotype and the configuration of its training, by default on the dataset of its search.

    Raises:
        InputError: a setting contradicts the search where both must agree.
    """
    genotype = read_genotype(source)
    searched = RunFolder.open(source).read().settings if os.path.isdir(source) else {}
    inherited = {name: searched[name] for name in (*_DEFAULTS, *_AGREED) if searched.get(name) is not None}
    config = bf.TrainConfig(**{**inherited, **given.settings("train")})
    for name in _AGREED:
        value = getattr(config, name)
        if value != inherited.get(name, value):
            raise InputError(f"{name}: expected {inherited[name]} as in the run {source}, got {value}")
    return genotype if rule is None else genotype.with_rule(rule), config
