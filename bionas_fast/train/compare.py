"""Trainings repeated over seeds, and comparisons of a network under several assignments of learning rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from bionas_fast import report, rules
from bionas_fast.config import RunConfig
from bionas_fast.errors import InputError, unknown
from bionas_fast.plugins import import_plugins
from bionas_fast.runs.folder import GENOTYPE, REPORT, NewFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.repeat import Variant, repeat
from bionas_fast.runs.seeds import SeedTable
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime import distributed
from bionas_fast.space import Genotype
from bionas_fast.train.genotype import TrainConfig, Training, train, trained_genotype

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
    out: str | Path | NewFolder | None = None,
    progress: Progress | None = None,
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
        out: the folder: new, empty, or that of an earlier call; by default one under ``runs/``.
        progress: receives the progress of each run and its result.

    Returns:
        The table of test accuracies, in percent. Runs whose numbers are no longer finite are among its ``failures``.

    Raises:
        InputError: an unknown variant, or one given twice; a genotype whose rules cannot be shuffled; ``out`` holds
            other runs; a run that cannot begin or continue.
        Interrupted: after Ctrl-C or SIGTERM. The runs are saved.
    """
    config = config or TrainConfig()
    import_plugins(config.plugins)  # their rules can be compared, too
    names = _expanded(variants, genotype, config)
    made = [replace(_variant(word, genotype, config), folder=word.replace(":", "-")) for word in names]
    name = f"compare-{config.dataset}-{_network_name(genotype, config)}"
    return _repeated(made, seeds, NewFolder(name) if out is None else out, progress)


def repeat_training(
    genotype: Genotype | None = None,
    config: RunConfig | None = None,
    *,
    seeds: int,
    out: str | Path | NewFolder | None = None,
    progress: Progress | None = None,
) -> SeedTable:
    """Train a network with several seeds; each run is in ``out/seed-N``.

    The arguments, the result and the files are those of :func:`compare_rules`.

    Raises:
        InputError: ``out`` holds other runs; a run that cannot begin or continue.
        Interrupted: after Ctrl-C or SIGTERM. The runs are saved.
    """
    config = config or TrainConfig()
    import_plugins(config.plugins)
    name = _network_name(genotype, config)
    variant = _training(name, genotype, config)
    return _repeated([variant], seeds, NewFolder(f"seeds-{config.dataset}-{name}") if out is None else out, progress)


def _repeated(
    variants: Sequence[Variant], seeds: int, out: str | Path | NewFolder, progress: Progress | None
) -> SeedTable:
    if seeds < 1:
        raise InputError(f"seeds: expected at least 1, got {seeds}")
    first = variants[0].config
    numbers = range(first.seed, first.seed + seeds)
    table = repeat(variants, numbers, out, metric=_METRIC, progress=progress)
    path = table.folder
    if path is not None and distributed.is_main():
        runs = {variant.name: [variant.path(path, seed) for seed in numbers] for variant in variants}
        report.write_comparison(path / REPORT, table, runs, title="Training", rows=table.rows())
    return table


def _expanded(variants: Iterable[str], genotype: Genotype | None, config: RunConfig) -> list[str]:
    """Return the words of the variants, those that ``all`` stands for among them."""
    every = (*([AS_FOUND] if genotype is not None else []), *_rules_of(config))
    words = [word for given in variants for word in (every if given == ALL else (given,))]
    if not words:
        raise InputError("variants: expected at least one")
    for index, word in enumerate(words):
        if word in words[:index]:
            raise InputError(f"variants: {word!r} is given twice")
    return words


def _variant(word: str, genotype: Genotype | None, config: RunConfig) -> Variant:
    if genotype is not None:
        assigned = _assigned(word, trained_genotype(genotype, _train_config(config)))
        return _training(word, assigned, config)
    if word not in _rules_of(config):
        raise unknown("variant", word, (*_rules_of(config), ALL))
    return _training(word, None, config.with_settings(rule=word))


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


def _training(name: str, genotype: Genotype | None, config: RunConfig) -> Variant:
    if genotype is None:
        trainer = _trainer_of(config)
        return Variant(name, trainer, config, trainer.start)
    files = {GENOTYPE: trained_genotype(genotype, _train_config(config)).to_json()}
    return Variant(name, Training, config, partial(train, genotype), files=files)


def _trainer_of(config: RunConfig) -> type[Trainer]:
    trainers: Sequence[Any] = [get_kind(kind) for kind in kind_names()]
    found = next((trainer for trainer in trainers if trainer.settings is type(config)), None)
    if found is None or not found.sources:
        raise InputError(f"genotype: expected one, with the settings {type(config).__name__}")
    return found


def _train_config(config: RunConfig) -> TrainConfig:
    if not isinstance(config, TrainConfig):
        raise InputError(f"config: expected TrainConfig for a genotype, got {type(config).__name__}")
    return config


def _network_name(genotype: Genotype | None, config: RunConfig) -> str:
    if genotype is not None:
        return genotype.hash
    return f"{getattr(config, 'architecture', 'network')}-{getattr(config, 'rule', '')}"
