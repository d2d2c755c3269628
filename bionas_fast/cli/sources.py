"""Genotypes as arguments of ``bionas-fast train``: files, published names, searches with one seed or with several."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bionas_fast as bf
from bionas_fast.cli.options import Given
from bionas_fast.cli.output import say
from bionas_fast.cli.show import read_genotype
from bionas_fast.config import CONFIG, FILE_SETTINGS
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.summary import RunSummary

#: The settings of a search that are the defaults of training its genotype, and those that must be the same in both.
_DEFAULTS = ("dataset", "data_dir")
_AGREED = ("skip_rules", "initialisation")


@dataclass(frozen=True)
class Source:
    """A genotype, or one for each seed, and the settings of the searches that found it.

    Attributes:
        name: its name in tables.
        found: the genotype, or for the folder of a search with several seeds, the genotype of each.
        searched: for each search: its folder and its settings.
    """

    name: str
    found: bf.Genotype | Mapping[int, bf.Genotype]
    searched: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, word: str) -> Source:
        """Read ``GENOTYPE`` or ``NAME=GENOTYPE``; a file or folder with such a name counts first.

        Raises:
            InputError: the genotype does not exist or is damaged; a search is not complete.
        """
        name, equals, place = word.partition("=")
        if not equals or os.path.exists(word):
            name, place = "", word
        path = Path(place)
        # os.path, because Path raises on names that no file can have.
        if not os.path.isdir(place):
            return cls(name or (path.stem if os.path.exists(place) else place), read_genotype(place), {})
        name = name or path.resolve().name
        searches = {} if (path / CONFIG).is_file() else _searches(path)
        if searches:
            found = {seed: read_genotype(search) for seed, search in searches.items()}
            return cls(name, found, {str(search): _settings(search) for search in searches.values()})
        genotype, record = read_genotype(place), RunFolder.open(path).read()
        run = RunSummary.read(path)
        if record.kind == "search" and run.state != "complete":
            say(f"note: {place}: the search is not complete; its genotype is that of epoch {run.done} of {run.epochs}")
        return cls(name, genotype, {place: record.settings})


def configuration(sources: Sequence[Source], given: Given) -> bf.TrainConfig:
    """Build the configuration of the training of genotypes, by default on the dataset of their searches.

    Raises:
        InputError: searches differ in a setting that is not given; a setting contradicts a search where both must
            agree.
    """
    searched = {place: settings for source in sources for place, settings in source.searched.items()}
    own = given.settings("train")
    inherited = () if "dataset" in own else FILE_SETTINGS
    for name in (*_DEFAULTS, *inherited, *_AGREED):
        values = {place: settings[name] for place, settings in searched.items() if settings.get(name) is not None}
        first = next(iter(values), "")
        for place, value in values.items():
            if name not in own and value != values[first]:
                raise InputError(f"{name}: {first} has {values[first]}, {place} has {value}; give one of them")
            if name in _AGREED and own.get(name, value) != value:
                raise InputError(f"{name}: expected {value} as in the run {place}, got {own[name]}")
        if values:
            if name == "dataset" and own.get(name, values[first]) != values[first] and name not in given.options:
                say(f"note: dataset {own[name]}, not {values[first]} as in the run {first}; --dataset chooses")
            own.setdefault(name, values[first])
    return bf.TrainConfig(**own)


def _searches(folder: Path) -> dict[int, Path]:
    """Find the searches with several seeds in a folder: ``seed-N``, in the order of the seeds."""
    seeds = (path.name.removeprefix("seed-") for path in folder.glob("seed-*") if (path / CONFIG).is_file())
    found = {int(seed): folder / f"seed-{seed}" for seed in seeds if seed.isascii() and seed.isdigit()}
    for path in found.values():
        if RunSummary.read(path).state != "complete":
            raise InputError(f"{path}: the search is not complete; continue it by the command that began it")
    return dict(sorted(found.items()))


def _settings(search: Path) -> Mapping[str, Any]:
    return RunFolder.open(search).read().settings


def named_runs(runs: Sequence[str]) -> dict[str, Path]:
    """Return the folders of the runs by name; ``NAME=RUN`` names one, otherwise the folder's name does.

    Raises:
        InputError: two runs have one name.
    """
    named: dict[str, Path] = {}
    for word in runs:
        name, separator, path = word.rpartition("=")
        name = name if separator else Path(word).resolve().name
        if name in named:
            raise InputError(f"{name!r} names two runs; name them: NAME=RUN")
        named[name] = Path(path)
    return named
