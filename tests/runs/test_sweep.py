"""Every value of every setting ends in a result or in an InputError of one line."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.cli.app import main
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.progress import Progress
from bionas_fast.searching.names import get_method, method_names
from helpers import killing, sweep
from helpers.genotypes import GENOTYPE
from helpers.runs import start

BASE: dict[str, dict[str, Any]] = {
    "search": {
        "epochs": 2,
        "channels": 2,
        "cells": 1,
        "rules": ("usf",),
        "operations": ("skip_connect", "sep_conv_3x3"),
        "population": 4,
        "generations": 1,
        "batch_size": 8,
    },
    "train": {"epochs": 1, "channels": 2, "cells": 1, "batch_size": 8},
    "resnet": {"epochs": 1, "batch_size": 8},
    "plain": {"epochs": 1, "batch_size": 8},
    "softhebb": {"epochs": 1, "batch_size": 8, "feature_batch_size": 8},
}
#: Words of the command line that begin a run of each kind.
BEGIN = {
    "search": ["search"],
    "train": ["train", "genotype.json"],
    "resnet": ["train", "resnet20"],
    "plain": ["train", "mlp"],
    "softhebb": ["train", "softhebb"],
}
#: Settings whose largest values are legitimate and take minutes; their ranges are tested without a run.
LONG = ("population", "generations", "channels", "cells")
SETTINGS = [(kind, name) for kind in kind_names() for name in get_kind(kind).settings.model_fields]
#: Of plain networks, those that residual ones do not have.
SETTINGS = [own for own in SETTINGS if own[0] != "plain" or ("resnet", own[1]) not in SETTINGS]


class Enough(Exception):
    """The run has begun well."""


class OneStep(Progress):
    def step(self, loss: float | None = None) -> None:
        raise Enough


def accepted(kind: str, name: str) -> list[Any]:
    """The values of the sweep that the setting takes; all others must be refused in one line that names it."""
    base = {**BASE[kind], "dataset": killing.DATASET}
    if kind == "search":
        using = [method for method in method_names() if name in get_method(method).options]
        base["method"] = (*using, "darts")[0]
        if name not in ("population", "generations") and "population" not in get_method(base["method"]).options:
            base = {key: value for key, value in base.items() if key not in ("population", "generations")}
    configs, refused = [], []
    for value in sweep.values(get_kind(kind).settings, name):
        try:
            configs.append(get_kind(kind).settings(**{**base, name: value}))
        except InputError as error:
            refused.append(str(error))
    assert all(name in message and "\n" not in message for message in refused)
    return configs


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=map("-".join, SETTINGS))
def test_a_value_gives_a_result_or_an_input_error(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # in seconds
    configs = accepted(kind, name)
    assert configs
    refused = []
    for number, config in enumerate({repr(config): config for config in configs}.values()):
        if name in LONG and getattr(config, name) > 10:
            continue
        how: dict[str, Any] = {"out": tmp_path / str(number), "progress": OneStep()}
        try:
            start(kind, config, **how)
        except Enough:
            pass
        except InputError as error:
            refused.append(str(error))
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize("name", ["channels", "cells", "epochs", "population", "generations", "batch_size"])
@pytest.mark.parametrize("value", [10**9, 2**63 - 1, 10**30])
def test_sizes_without_bound_are_refused(name, value):
    with pytest.raises(InputError, match=f"^{name}: "):
        bf.SearchConfig(**{name: value})


def test_a_network_larger_than_the_memory_is_refused_before_it_is_built(tmp_path):
    config = bf.SearchConfig(dataset=killing.DATASET, channels=4096, cells=200)
    with pytest.raises(InputError, match=r"^channels: 4096 in 200 cells need about .* GiB"):
        bf.search(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


#: Texts that only the command line parses, none of which is a value of a setting that runs for long; a third of them
#: for each setting.
TEXTS = (
    *("-1", "1e300", "nan", ".inf", "[.nan]", "{a: 1}"),
    *("!!python/object:os.system x", "&a [*a]", "[[[[", "'", "\x00"),
)


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=map("-".join, SETTINGS))
def test_the_command_line_refuses_in_one_line(kind, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genotype.json").write_text(GENOTYPE.to_json())
    begin = BEGIN[kind]
    for text in TEXTS[SETTINGS.index((kind, name)) % 3 :: 3]:
        try:
            get_kind(kind).settings(**{name: text})
        except InputError:
            pass
        else:
            continue  # a text is a value of this setting
        with pytest.raises(SystemExit) as stop:
            main([*begin, f"--dataset={killing.DATASET}", "--set", f"{name}={text}"])
        assert stop.value.code == 2
        assert capsys.readouterr().err.strip().count("\n") == 0


def test_a_batch_of_one_that_cannot_be_normalised_names_the_batch_size():
    config = bf.TrainConfig(**{**BASE["train"], "dataset": killing.DATASET, "batch_size": 1}, auxiliary_weight=0.4)
    with pytest.raises(InputError, match=r"^batch_size: "):
        bf.train(GENOTYPE, config, out=False)


@pytest.mark.parametrize("name", ["é" * 5000, "x" * 5000 + ".py", "\x00", "../" * 2000])
@pytest.mark.parametrize("command", ["train", "show", "search"])
def test_names_that_are_no_files(name, command, capsys):
    words = [command, "--plugin", name] if command == "search" else [command, name]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().count("\n") == 0
