"""Costs of the runs of a plan on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from bionas_fast import presets
from bionas_fast.config import RunConfig, RunRecord
from bionas_fast.errors import InputError
from bionas_fast.estimation import Estimate, estimate
from bionas_fast.reproduce.plan import Step
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.searching.checks import over_preset
from bionas_fast.space import Genotype, get_space, published, published_names
from bionas_fast.space.sampling import random_genotype
from bionas_fast.training import TrainConfig

#: Options that do not change what a training costs, with the number of words after them.
_FREE = {"--rule": 1, "--everywhere": 0, "--shuffle-rules": 1}
#: Options about files.
_PLACES = {"--data-dir": 1, "--download": 0, "--plugin": 1}


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        step: the run.
        estimate: its cost; None if it could not be measured.
        failure: the reason.
    """

    step: Step
    estimate: Estimate | None
    failure: str = ""


def estimate_costs(
    steps: Sequence[Step], *, seconds: float = 20.0, measuring: Callable[[Step], object] = lambda step: None
) -> list[Cost]:
    """Measure a few steps of every search and training, on random images; runs that differ in their rules, once.

    The training of what a search finds is measured with a random genotype of its space.

    Args:
        steps: the steps; attacks are left out.
        seconds: time for each measurement.
        measuring: called before each.
    """
    known: dict[tuple[str, ...], Cost] = {}
    searches = {step.folder: step for step in steps if step.words[0] == "search"}
    costs = []
    for step in (step for step in steps if step.is_run):
        key = tuple(_without(step.words, {**_FREE, "--seed": 1}))
        if key not in known:
            measuring(step)
            try:
                config = _config(step)
                known[key] = Cost(step, estimate(config, _genotype(step, config, searches), seconds=seconds))
            except InputError as error:
                known[key] = Cost(step, None, str(error))
        costs.append(Cost(step, known[key].estimate, known[key].failure))
    return costs


def _without(words: Sequence[str], options: Mapping[str, int]) -> list[str]:
    """Leave options out, with the words that belong to them."""
    kept, skip = [], 0
    for word in words:
        if skip:
            skip -= 1
        elif word in options:
            skip = options[word]
        else:
            kept.append(word)
    return kept


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values; that of a switch, such as ``--compile``, is ``true``."""
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while rest:
        option = rest.pop(0)
        yield option, rest.pop(0) if rest and not rest[0].startswith("--") else "true"


def _config(step: Step) -> RunConfig:
    """Return the settings of a step."""
    kind = get_kind(step.words[0])
    settings: dict[str, Any] = {}
    preset: Mapping[str, Any] = {}
    words = list(step.words[1:])
    if step.words[0] == "train":
        source = words.pop(0)
        named = (get_kind(kind) for kind in kind_names())
        kind = next((own for own in named if source in own.sources), kind)
        settings |= kind.trainer.settings_of_source(source) if source in kind.sources else {}
    for option, value in _options(_without(words, {**_FREE, **_PLACES})):
        if option == "--config":
            settings |= RunRecord.read(Path(value)).settings
        elif option == "--preset":
            preset = presets.get(value).settings
        elif option == "--set":
            name, _, text = value.partition("=")
            settings[name] = yaml.safe_load(text)
        elif option == "--rules":
            settings["rules"] = tuple(value.split(","))
        else:
            settings[option.removeprefix("--").replace("-", "_")] = yaml.safe_load(value)
    return kind.settings(**over_preset(preset, settings))


def _genotype(step: Step, config: RunConfig, searches: Mapping[Path, Step]) -> Genotype | None:
    """Return the genotype whose training is measured; None for other runs."""
    if not isinstance(config, TrainConfig):
        return None
    if step.words[1] in published_names():
        return published(step.words[1]).genotype
    searched: Any = _config(searches[Path(step.words[1])])
    space = get_space(searched.space).restricted(searched.rules, searched.operations)
    return random_genotype(space, torch.Generator().manual_seed(0))
