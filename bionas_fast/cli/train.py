"""``bionas-fast train``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import bionas_fast as bf
from bionas_fast.choices import WITHOUT_RULES
from bionas_fast.cli.dry_run import print_plan
from bionas_fast.cli.options import Given, Seeds, Wanted, takes_record, takes_settings, with_plugins
from bionas_fast.cli.output import interruptible, out, print_json, print_lines, print_table, progress
from bionas_fast.cli.show import read_genotype
from bionas_fast.cli.sources import Source, configuration
from bionas_fast.config import CONFIG
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.kinds import Kind, get_kind, kind_names
from bionas_fast.runs.seeds import SeedTable

#: The names of networks other than genotypes, from the kinds of run.
_NETWORKS: Mapping[str, Kind] = {word: kind for kind in map(get_kind, kind_names()) for word in kind.sources}
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="|".join(("[NAME=]RUN", "[NAME=]GENOTYPE", *_NETWORKS)),
        help="Run folder of a search, also of one with several seeds; genotype file; or network. Several genotypes are "
        "compared.",
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
            help="Use this rule on every searched edge (fa, dfa, drtp, sdfa: except skip connections); for a ResNet, "
            "on every layer; for softhebb, on the filters."
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

    @property
    def variant(self) -> str:
        """The name of the assignment among the variants of a comparison."""
        if self.shuffle_rules is not None:
            return f"shuffle:{self.shuffle_rules}"
        return f"{self.rule or 'genotype'}{':everywhere' if self.everywhere else ''}"

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

    @property
    def variants(self) -> list[str] | None:
        """The variants to compare, if any."""
        return None if self.compare is None else [word.strip() for word in self.compare.split(",")]


@with_plugins
@takes_settings("train")
@takes_record("assignment", Assignment)
@takes_record("repetition", Repetition)
@takes_record("wanted", Wanted)
def train(
    given: Given, assignment: Assignment, repetition: Repetition, wanted: Wanted, sources: Sources = None
) -> None:
    """Train the genotype of a search, or another network, from scratch and test it.

    Several genotypes, those of a search with several seeds, --seeds and --compare are trained one after the other, each
    in a run folder of its own, and compared.

    The dataset and its folder default to those of the search; skip_rules and initialisation are those of the search.
    """
    words, resume = sources or [], wanted.resume
    if not words and resume is None:
        known = " or ".join(("a genotype", *_NETWORKS))
        raise InputError(f"nothing to train: give a run folder, {known}, or resume a run with --resume RUN")
    if repetition.compare is not None and assignment.given:
        raise InputError("--compare names the rules of all variants: omit --rule, --everywhere and --shuffle-rules")
    network = _network(words, resume)
    if network is not None:
        named = network.trainer.settings_of_source(words[0]) if words else {}
        given = given.with_options(**named, **assignment.settings(network.name))
        if repetition.given:
            config: Any = given.recorded(network.name)
            _print_repeated(partial(_repetition(repetition), None, config), wanted)
        else:
            _train_network(network, given, wanted)
        return
    read = [Source.read(word) for word in words]
    if repetition.given or any(not isinstance(source.found, bf.Genotype) for source in read) or len(read) > 1:
        _repeat_genotypes(read, given, assignment, repetition, wanted)
    else:
        _train_genotype(read, given, assignment, wanted)


def _network(words: Sequence[str], resume: Path | None) -> Kind | None:
    """Return the kind of run that trains the named network; None for genotypes."""
    named = next((word for word in words if word in _NETWORKS), None)
    if named is not None and len(words) > 1:
        raise InputError(f"{named}: expected nothing else to train, got {', '.join(words)}")
    if resume is None or not os.path.isfile(resume / CONFIG):
        return None if named is None else _NETWORKS[named]
    kind = RunFolder.open(resume).read().kind
    network = next((own for own in _NETWORKS.values() if own.name == kind), None)
    if network is not None and words and words[0] not in network.sources:
        raise InputError(f"{resume} trains {network.name}, not {words[0]}")
    return network


def _repeat_genotypes(
    read: Sequence[Source], given: Given, assignment: Assignment, repetition: Repetition, wanted: Wanted
) -> None:
    config = configuration(read, given)
    if len(read) == 1 and isinstance(read[0].found, bf.Genotype):
        _print_repeated(partial(_repetition(repetition), assignment.of(read[0].found), config), wanted)
        return
    genotypes = {source.name: source.found for source in read}
    if len(genotypes) < len(read):
        raise InputError(f"expected different names, got {', '.join(s.name for s in read)}; give NAME=GENOTYPE")
    variants = repetition.variants or [assignment.variant]
    compare = partial(bf.compare_genotypes, genotypes, config, variants=variants, seeds=repetition.seeds)
    _print_repeated(compare, wanted)


def _repetition(repetition: Repetition) -> Callable[..., SeedTable]:
    """Return the function that repeats the training of a network, under one assignment of rules or several."""
    seeds, variants = repetition.seeds or 1, repetition.variants
    if variants is None:
        return partial(bf.repeat_training, seeds=seeds)
    return partial(bf.compare_rules, seeds=seeds, variants=variants)


def _print_repeated(repeat: Callable[..., SeedTable], wanted: Wanted) -> None:
    """Run the trainings that are not complete, and print the table of all."""
    folder = wanted.repeated_folder()
    with interruptible():
        table = repeat(out=folder, progress=progress())
    if wanted.as_json:
        variants = [{"variant": own.name, "accuracies": own.values, "bp %": own.shares} for own in table.series]
        print_json({"folder": str(table.folder), "metric": table.metric, "variants": variants})
    else:
        print_table(table.rows())
        out.print()
        out.print(table.legend, markup=False, highlight=False, soft_wrap=True)
        print_lines({"folder": str(table.folder)})
    if table.failures:
        raise InputError("; ".join(table.failures))


def _train_network(kind: Kind, given: Given, wanted: Wanted) -> None:
    resume = wanted.resume
    if wanted.dry_run:
        print_plan(given.recorded(kind.name, resume))
        return
    if resume is None:
        config: Any = given.recorded(kind.name)
    else:
        config = given.resumed(kind.name, resume)
    with interruptible():
        result = kind.trainer.start(config, out=wanted.folder, resume=resume, progress=progress())
    if result.run_dir is not None:  # this process writes, and prints
        settings = RunFolder.open(result.run_dir).read().settings
        without = settings.get("trainer") in WITHOUT_RULES
        _print_trained(result, {"rule": str(settings["trainer" if without else "rule"])}, wanted)


def _train_genotype(read: Sequence[Source], given: Given, assignment: Assignment, wanted: Wanted) -> None:
    found = next((source.found for source in read if isinstance(source.found, bf.Genotype)), None)
    resume = wanted.resume
    if resume is None:
        assert found is not None
        config = configuration(read, given)
        genotype: bf.Genotype | None = assignment.of(found)
    else:
        if found is None and assignment.shuffle_rules is not None:
            raise InputError("--shuffle-rules: the rules of the resumed run are shuffled already; omit it")
        if found is None and assignment.given:
            found = read_genotype(resume)
        genotype = None if found is None else assignment.of(found)
        config = given.resumed("train", resume)
    if wanted.dry_run:
        if resume is not None:
            config, genotype = given.recorded("train", resume), genotype or read_genotype(resume)
        print_plan(config, genotype)
        return
    with interruptible():
        result = bf.train(genotype, config, out=wanted.folder, resume=resume, progress=progress())
    _print_trained(result, {"genotype": result.network.genotype.hash}, wanted)


def _print_trained(result: bf.TrainResult[Any], head: Mapping[str, str], wanted: Wanted) -> None:
    """Print the result of a training, after the lines of ``head``."""
    if wanted.as_json:
        size = {"parameters": result.size.parameters, "multiply-adds": result.size.operations}
        last = {"weights by rule": result.size.weights, "images per second": result.images_per_second}
        print_json({**head, "run": str(result.run_dir), **size, **last, **result.metrics[-1]})
    else:
        print_lines({**head, **result.lines(), "run folder": str(result.run_dir)})
