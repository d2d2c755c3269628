"""``bionas-fast train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import bionas_fast as bf
from bionas_fast.cli.options import Given, Out, Resume, Seeds, takes_record, takes_settings, with_plugins
from bionas_fast.cli.output import Bars, interruptible, out, print_lines, print_table, print_trained
from bionas_fast.cli.show import read_genotype
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import NewFolder, RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.seeds import LEGEND, SeedTable
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


@dataclass(frozen=True)
class Assignment:
    """The assignment of learning rules to the layers of a network, as options.

    Raises:
        InputError: options that contradict each other.
    """

    rule: Annotated[
        str | None,
        typer.Option(
            help="Use this rule on every searched edge (fa, dfa: except skip connections); for a ResNet, on every "
            "layer; for softhebb, on the filters."
        ),
    ] = None
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere",
            help="With --rule: also on stem, preprocessing, auxiliary head and classifier.",
        ),
    ] = False
    shuffle_rules: Annotated[
        int | None,
        typer.Option(min=0, metavar="SEED", help="Reassign the rules of a genotype to its edges at random."),
    ] = None

    def __post_init__(self) -> None:
        if self.everywhere and self.rule is None:
            raise InputError("--everywhere needs --rule")
        if self.shuffle_rules is not None and self.rule is not None:
            raise InputError("--shuffle-rules keeps the rules of the genotype: omit --rule")

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self != Assignment()

    def of(self, genotype: bf.Genotype) -> bf.Genotype:
        """Assign the rules to a genotype."""
        if self.shuffle_rules is not None:
            return genotype.with_shuffled_rules(self.shuffle_rules)
        return genotype if self.rule is None else genotype.with_rule(self.rule, everywhere=self.everywhere)

    def settings(self, kind: str) -> dict[str, str]:
        """Return the settings of a network without a genotype.

        Raises:
            InputError: options for genotypes only.
        """
        if self.everywhere or self.shuffle_rules is not None:
            raise InputError(f"--everywhere and --shuffle-rules are for genotypes; a {kind} has one rule")
        return {} if self.rule is None else {"rule": self.rule}


@dataclass(frozen=True)
class Repetition:
    """The repetition of a training, as options."""

    seeds: Seeds = None
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="VARIANTS",
            help="Train these variants and print a table of them: genotype (as it is), RULE (on every searched edge), "
            "RULE:everywhere, shuffle:SEED, all (the genotype and every rule); for other networks, their rules.",
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self != Repetition()

    def run(self, genotype: bf.Genotype | None, config: Any, folder: Path | None) -> SeedTable:
        """Run the trainings, or those that are not complete."""
        if self.compare is None:
            return bf.repeat_training(genotype, config, seeds=self.seeds or 1, out=folder, progress=Bars())
        variants = [word.strip() for word in self.compare.split(",")]
        return bf.compare_rules(genotype, config, variants=variants, seeds=self.seeds or 1, out=folder, progress=Bars())


@with_plugins
@takes_settings("train")
@takes_record("assignment", Assignment)
@takes_record("repetition", Repetition)
def train(
    given: Given,
    assignment: Assignment,
    repetition: Repetition,
    source: Source = None,
    folder: Out = None,
    resume: Resume = None,
) -> None:
    """Train the genotype of a search, or another network, from scratch and test it.

    The dataset and its folder default to those of the search; skip_rules and initialisation are those of the search.
    """
    if source is None and resume is None:
        words = " or ".join(("a genotype", *_NETWORKS))
        raise InputError(f"nothing to train: give a run folder, {words}, or resume a run with --resume RUN")
    if repetition.given and resume is not None:
        raise InputError("--seeds and --compare continue when given again with the same --out: omit --resume")
    if repetition.compare is not None and assignment.given:
        raise InputError("--compare names the rules of all variants: omit --rule, --everywhere and --shuffle-rules")
    network = _network(source, resume)
    if network is not None:
        named = {} if source is None else network.settings_of_source(source)
        given = given.with_options(**named, **assignment.settings(network.kind))
    if repetition.given:
        genotype, config = _training(network, given, str(source), assignment)
        with interruptible():
            _print_repeated(repetition.run(genotype, config, folder))
    elif network is None:
        _train_genotype(given, source, assignment, folder, resume)
    else:
        _train_network(network, given, folder, resume)


def _network(source: str | None, resume: Path | None) -> type[Trainer] | None:
    """Return the kind of run that trains the named network; None for genotypes."""
    if resume is None:
        return _NETWORKS.get(str(source))
    kind = RunFolder.open(resume).read().kind
    network = next((trainer for trainer in _NETWORKS.values() if trainer.kind == kind), None)
    if network is not None and source not in (None, *network.sources):
        raise InputError(f"{resume} trains {network.kind}, not {source}")
    return network


def _training(
    network: type[Trainer] | None, given: Given, source: str, assignment: Assignment
) -> tuple[bf.Genotype | None, Any]:
    """Return the genotype to train, if any, and the configuration."""
    if network is not None:
        return None, network.settings(**given.settings(network.kind))
    return _genotype(given, source, assignment)


def _print_repeated(table: SeedTable) -> None:
    print_table(table.rows())
    out.print()
    out.print(LEGEND, markup=False, highlight=False, soft_wrap=True)
    print_lines({"folder": str(table.folder)})
    if table.failures:
        raise InputError("; ".join(table.failures))


def _train_network(trainer: type[Trainer], given: Given, folder: Path | None, resume: Path | None) -> None:
    place: Path | NewFolder | None = folder
    if resume is None:
        config: Any = trainer.settings(**given.settings(trainer.kind))
        place = folder or NewFolder(f"{trainer.kind}-{config.dataset}-{config.rule}")
    else:
        config = given.resumed(trainer.kind, resume)
    with interruptible():
        result = trainer.start(config, out=place, resume=resume, progress=Bars())
    print_trained(result, {"rule": str(RunFolder.open(result.run_dir).read().settings["rule"])})


def _train_genotype(
    given: Given, source: str | None, assignment: Assignment, folder: Path | None, resume: Path | None
) -> None:
    genotype: bf.Genotype | None
    place: Path | NewFolder | None = folder
    if resume is None:
        genotype, config = _genotype(given, str(source), assignment)
        place = folder or NewFolder(f"train-{config.dataset}-{genotype.hash}")
    else:
        genotype = None if source is None else assignment.of(read_genotype(source))
        if source is None and assignment.shuffle_rules is not None:
            raise InputError("--shuffle-rules: the rules of the resumed run are shuffled already; omit it")
        if source is None and assignment.given:
            genotype = assignment.of(read_genotype(resume))
        config = given.resumed("train", resume)
    with interruptible():
        result = bf.train(genotype, config, out=place, resume=resume, progress=Bars())
    print_trained(result, {"genotype": result.network.genotype.hash})


def _genotype(given: Given, source: str, assignment: Assignment) -> tuple[bf.Genotype, bf.TrainConfig]:
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
    return assignment.of(genotype), config
