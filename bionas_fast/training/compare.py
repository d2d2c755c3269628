"""Trainings repeated over seeds; comparisons of networks, and of one under several assignments of learning rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

from bionas_fast import report, rules
from bionas_fast.config import RunConfig
from bionas_fast.data import AnyDataset, Data, as_dataset, with_data
from bionas_fast.errors import InputError, expect_count, expect_type, unknown
from bionas_fast.plugins import import_plugins
from bionas_fast.runs.callbacks import Callback, expect_callbacks
from bionas_fast.runs.folder import GENOTYPE, REPORT, NewFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.repeat import PlannedRun, Variant, repeat
from bionas_fast.runs.seeds import SeedTable
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime import distributed
from bionas_fast.space import Genotype
from bionas_fast.training.genotype import TrainConfig, Training, train, trained_genotype

#: One genotype, or one for each seed, such as those that the searches with these seeds found.
Genotypes = Genotype | Mapping[int, Genotype]
#: The variant that stands for the genotype as it is, and the word for it and every single rule.
AS_FOUND, ALL = "genotype", "all"
#: What follows a rule that also applies outside the searched edges, and the word before the seed of a shuffle.
EVERYWHERE, SHUFFLE = "everywhere", "shuffle"
_METRIC = "test accuracy %"


def compare_rules(
    genotype: Genotype | None = None,
    config: RunConfig | None = None,
    *,
    variants: Iterable[str] = (ALL,),
    seeds: int = 1,
    data: Data | None = None,
    out: str | Path | NewFolder | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> SeedTable:
    """Train a network under several assignments of learning rules, each with several seeds, and compare them.

    Each run is in ``out/VARIANT/seed-N``. Complete runs are not repeated, so the same call continues what was
    interrupted, and a call with more seeds or variants adds those. The folder also gets ``table.md``, ``table.csv`` and
    ``report.html``.

    Args:
        genotype: the architecture and its learning rules; None for the network of another ``config``.
        config: the settings of every run, the first seed among them: :class:`TrainConfig` with a genotype, by default,
            or :class:`ResNetConfig` or :class:`SoftHebbConfig` without.
        variants: the assignments; the differences are those to the first one. With a genotype: ``genotype`` (as it
            is), a rule such as ``usf`` (on every searched edge, see :meth:`Genotype.with_rule`), ``usf:everywhere``
            (on every layer), ``shuffle:3`` (:meth:`Genotype.with_shuffled_rules`), or ``all`` (the genotype and every
            rule). Otherwise: a rule of the network, or ``all``.
        seeds: number of seeds; they count from that of ``config``.
        data: the images, in place of the dataset that the settings name; see :func:`bionas_fast.data.as_dataset`.
        out: the folder: new, empty, or that of an earlier call; by default one under ``runs/``.
        progress: receives the progress of each run and its result; True shows it on stderr.
        callbacks: see every run, one after the other; see :class:`bionas_fast.Callback`.

    Returns:
        The table of test accuracies, in percent. Runs whose numbers are no longer finite are among its ``failures``.

    Raises:
        InputError: an unknown variant, or one given twice; a genotype whose rules cannot be shuffled; ``out`` holds
            other runs; a run that cannot begin or continue.
        Interrupted: after Ctrl-C or SIGTERM. The runs are saved.
    """
    expect_type("genotype", genotype, (Genotype, type(None)), "bf.Genotype.load(PATH) reads one")
    shared = _Shared.of(config, data, callbacks)
    config = shared.config
    numbers = _numbers(config, seeds)
    if genotype is not None:
        words = _expanded(variants, (AS_FOUND, *rules.names()))
        made = [_assigned_variant("", genotype, word, shared, numbers) for word in words]
    else:
        known = _rules_of(config)
        words = _expanded(variants, known)
        for word in words:
            if word not in known:
                raise unknown("variant", word, (*known, ALL))
        assigned = {word: replace(shared, config=config.with_settings(rule=word)) for word in words}
        made = [Variant(word, _network_runs(own, numbers), _folder(word)) for word, own in assigned.items()]
    name = f"compare-{config.dataset}-{_network_name(genotype, config)}"
    return _repeated(made, NewFolder(name) if out is None else out, progress)


def compare_genotypes(
    genotypes: Mapping[str, Genotypes],
    config: TrainConfig | None = None,
    *,
    variants: Iterable[str] = (AS_FOUND,),
    seeds: int | None = None,
    data: Data | None = None,
    out: str | Path | NewFolder | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> SeedTable:
    """Train several genotypes under the same assignments of learning rules, each with several seeds, and compare them.

    Each run is in ``out/NAME-VARIANT/seed-N``; that of a genotype as it is, in ``out/NAME/seed-N``. Otherwise this is
    :func:`compare_rules`.

    Args:
        genotypes: by name, a genotype, or one for each seed, such as those that searches with these seeds found.
        config: the settings of every run, the first seed among them.
        variants: the assignments, as of :func:`compare_rules`; every genotype is trained under each. The differences
            are those to the first genotype under the first one, and those to the same genotype under the first one.
        seeds: number of seeds, from that of ``config`` on; by default one, or all from that on that have genotypes.
        data, out, progress, callbacks: as of :func:`compare_rules`.

    Raises:
        InputError: no genotypes, names that differ only in punctuation, no genotype for a seed; otherwise as of
            :func:`compare_rules`.
        Interrupted: after Ctrl-C or SIGTERM. The runs are saved.
    """
    expect_type("genotypes", genotypes, Mapping, "write {'a name': genotype, …}")
    shared = _Shared.of(config, data, callbacks)
    settings = shared.config
    if not genotypes:
        raise InputError("genotypes: expected at least one")
    found = _seeds_of(genotypes, settings.seed) if seeds is None else []
    numbers = found or _numbers(settings, 1 if seeds is None else seeds)
    words = _expanded(variants, (AS_FOUND, *rules.names()))
    made = []
    for own in genotypes.items():
        first, *others = (_assigned_variant(*own, word, shared, numbers) for word in words)
        within = first.name if len(genotypes) > 1 else ""
        made += [first, *(replace(variant, baseline=within) for variant in others)]
    folders = [variant.folder for variant in made]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            raise InputError(f"genotypes: two of them have the folder {folder}; choose other names")
    return _repeated(made, NewFolder(f"compare-{settings.dataset}-genotypes") if out is None else out, progress)


def repeat_training(
    genotype: Genotype | None = None,
    config: RunConfig | None = None,
    *,
    seeds: int,
    data: Data | None = None,
    out: str | Path | NewFolder | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> SeedTable:
    """Train a network with several seeds; each run is in ``out/seed-N``.

    The arguments, the result and the files are those of :func:`compare_rules`.

    Raises:
        InputError: ``out`` holds other runs; a run that cannot begin or continue.
        Interrupted: after Ctrl-C or SIGTERM. The runs are saved.
    """
    shared = _Shared.of(config, data, callbacks)
    config = shared.config
    name, numbers = _network_name(genotype, config), _numbers(config, seeds)
    if genotype is None:
        runs = _network_runs(shared, numbers)
    else:
        runs = {seed: _genotype_run(genotype, shared, seed) for seed in numbers}
    out = NewFolder(f"seeds-{config.dataset}-{name}") if out is None else out
    return _repeated([Variant(name, runs)], out, progress)


@dataclass(frozen=True)
class _Shared:
    """The common part of the runs of a comparison.

    Attributes:
        config: the settings.
        data: the images, in place of the dataset that the settings name.
        callbacks: see every run.
    """

    config: RunConfig
    data: AnyDataset | None
    callbacks: Sequence[Callback]

    @classmethod
    def of(cls, config: RunConfig | None, data: Data | None, callbacks: Sequence[Callback]) -> _Shared:
        """Check the arguments, and import plugins, which may bring rules; the settings are by default a genotype's."""
        expect_type("config", config, (RunConfig, type(None)), "write bf.TrainConfig(dataset='digits')")
        expect_callbacks(callbacks)
        given = None if data is None else as_dataset(data)
        config = with_data(config or TrainConfig(), given)
        import_plugins(config.plugins)
        return cls(config, given, callbacks)

    def run(
        self, trainer: type[Trainer], seed: int, start: Callable[..., object], files: Mapping[str, str] | None = None
    ) -> PlannedRun:
        """Plan the run of a seed; ``start`` begins it."""
        start = partial(start, data=self.data, callbacks=self.callbacks)
        return PlannedRun(trainer, self.config.with_settings(seed=seed), start, files or {})


def _numbers(config: RunConfig, seeds: int) -> Sequence[int]:
    expect_count("seeds", seeds)
    return range(config.seed, config.seed + seeds)


def _seeds_of(genotypes: Mapping[str, Genotypes], least: int) -> list[int]:
    """Return the seeds that have genotypes, from ``least`` on; none if each genotype is the same for all seeds."""
    seeds = {
        name: sorted(seed for seed in found if seed >= least)
        for name, found in genotypes.items()
        if not isinstance(found, Genotype)
    }
    for name, own in seeds.items():
        first = next(iter(seeds))
        if own != seeds[first]:
            raise InputError(f"seeds: {first} has {seeds[first]}, {name} has {own}; say how many to train")
    return next(iter(seeds.values()), [])


def _repeated(variants: Sequence[Variant], out: str | Path | NewFolder, progress: Progress | bool | None) -> SeedTable:
    table = repeat(variants, out, metric=_METRIC, progress=progress)
    path = table.folder
    if path is not None and distributed.is_main():
        runs = {variant.name: [variant.path(path, seed) for seed in variant.runs] for variant in variants}
        compared = report.Compared(f"Trainings on {next(iter(variants[0].runs.values())).config.dataset}", table, runs)
        report.write_comparison(path / REPORT, [compared], title="Training")
    return table


def _expanded(variants: Iterable[str], every: Sequence[str]) -> list[str]:
    """Return the words of the variants, with those that ``all`` stands for in its place."""
    if isinstance(variants, str):
        raise InputError(f"variants: expected a list, got {variants!r}; write [{variants!r}]")
    words = [word for given in variants for word in (every if given == ALL else (given,))]
    if not words:
        raise InputError("variants: expected at least one")
    for index, word in enumerate(words):
        if word in words[:index]:
            raise InputError(f"variants: {word!r} is given twice")
    return words


def _assigned_variant(name: str, found: Genotypes, word: str, shared: _Shared, numbers: Sequence[int]) -> Variant:
    """Plan the runs of a genotype, or of those of several searches, under an assignment of rules."""
    runs = {}
    for seed in numbers:
        if not isinstance(found, Genotype) and seed not in found:
            raise InputError(f"{name}: expected a genotype for seed {seed}, got those of {sorted(found)}")
        genotype = found if isinstance(found, Genotype) else found[seed]
        genotype = _assigned(word, trained_genotype(genotype, _train_config(shared.config)))
        runs[seed] = _genotype_run(genotype, shared, seed)
    shown = name if name and word == AS_FOUND else f"{name} {word}".strip()
    return Variant(shown, runs, folder=_folder(shown))


def _folder(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name)


def _assigned(word: str, genotype: Genotype) -> Genotype:
    """Return the genotype under the assignment of rules that a word stands for."""
    name, _, detail = word.partition(":")
    if word == AS_FOUND:
        return genotype
    if name == SHUFFLE and detail.isascii() and detail.isdigit():
        return genotype.with_shuffled_rules(int(detail))
    if name in rules.names() and word in (name, f"{name}:{EVERYWHERE}"):
        return genotype.with_rule(name, everywhere=detail == EVERYWHERE)
    known = [AS_FOUND, *rules.names(), *(f"{rule}:{EVERYWHERE}" for rule in rules.names()), f"{SHUFFLE}:SEED", ALL]
    raise unknown("variant", word, known)


def _rules_of(config: RunConfig) -> tuple[str, ...]:
    """Return the rules that the network of a configuration can learn by."""
    field = type(config).model_fields.get("rule")
    return (get_args(field.annotation) if field else ()) or rules.names()


def _genotype_run(genotype: Genotype, shared: _Shared, seed: int) -> PlannedRun:
    files = {GENOTYPE: trained_genotype(genotype, _train_config(shared.config)).to_json()}
    return shared.run(Training, seed, partial(train, genotype), files)


def _network_runs(shared: _Shared, numbers: Sequence[int]) -> dict[int, PlannedRun]:
    """Plan the runs of a network that is not of a genotype."""
    settings = type(shared.config)
    kind = next((kind for kind in map(get_kind, kind_names()) if kind.settings is settings), None)
    if kind is None or not kind.sources:
        raise InputError(f"genotype: expected one, with the settings {settings.__name__}")
    return {seed: shared.run(kind.trainer, seed, kind.trainer.start) for seed in numbers}


def _train_config(config: RunConfig) -> TrainConfig:
    if not isinstance(config, TrainConfig):
        raise InputError(f"config: expected TrainConfig for a genotype, got {type(config).__name__}")
    return config


def _network_name(genotype: Genotype | None, config: RunConfig) -> str:
    if genotype is not None:
        return genotype.hash
    return f"{getattr(config, 'architecture', 'network')}-{getattr(config, 'learns_by', getattr(config, 'rule', ''))}"
