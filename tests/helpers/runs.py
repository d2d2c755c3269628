"""Small runs of every kind: their settings, how far they are advanced, how their folders are compared."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.config import changeable
from bionas_fast.data import names
from bionas_fast.runs import checkpoint
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.kinds import get_kind
from bionas_fast.runs.trainer import Trainer
from bionas_fast.searching import Search, SearchConfig
from bionas_fast.space import names as spaces
from bionas_fast.training.genotype import Training
from bionas_fast.training.resnet import ResNetConfig, ResNetTraining
from bionas_fast.training.softhebb import SoftHebbTraining
from helpers import killing
from helpers.genotypes import GENOTYPE

#: Everything that draws random numbers is on, and there is a checkpoint after every step.
SETTINGS = {
    "search": {
        "space": killing.SPACE,
        "rules": ("usf", "brsf"),
        "operations": ("skip_connect", "dil_conv_3x3"),
        "channels": 1,
        "cells": 2,
        "epochs": 3,
        "batch_size": 8,
        "flip": True,
        "crop_padding": 1,
        "cutout": 2,
    },
    "train": {
        "channels": 1,
        "cells": 2,
        "epochs": 4,
        "batch_size": 8,
        "flip": True,
        "drop_path": 0.3,
        "policy": "trivialaugment",
        "mixup": 0.2,
        "cutmix": 0.5,
        "accumulate": 2,
        "ema_decay": 0.5,
        "valid_fraction": 0.25,
    },
    "resnet": {"epochs": 2, "batch_size": 8, "rule": "brsf"},
    "softhebb": {"feature_batch_size": 8, "layerwise": True, "epochs": 3, "batch_size": 8},
}
SETTINGS = {kind: {"dataset": killing.DATASET, "checkpoint_every": 0.0, **own} for kind, own in SETTINGS.items()}


def put_dataset(monkeypatch: pytest.MonkeyPatch, loader: Any) -> None:
    """Make ``loader`` that of the small dataset, for one test, in which the small space is known too."""
    monkeypatch.setitem(names.registry._items, killing.DATASET, loader)
    monkeypatch.setitem(spaces.spaces._items, killing.SPACE, killing.two_nodes)


def plain(value: Any) -> Any:
    """Convert nested values to a form that compares bit by bit, without times and settings that may change."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        skipped = ("seconds", *changeable(SearchConfig))
        return {name: plain(entry) for name, entry in value.items() if name not in skipped}
    return [plain(own) for own in value] if isinstance(value, (list, tuple)) else value


def expect_same(folder: Path, whole: Path) -> None:
    """Compare everything that two runs wrote, bit by bit."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    for name in ("checkpoint.pt", "best.pt"):
        if (whole / name).exists():
            assert plain(checkpoint.unpack(folder / name)) == plain(checkpoint.unpack(whole / name))
    rows = [plain(RunFolder.open(path).read_metrics()) for path in (folder, whole)]
    assert rows[0] == rows[1]
    if (whole / "alphas.npz").exists():
        with np.load(folder / "alphas.npz") as own, np.load(whole / "alphas.npz") as expected:
            for kind in ("normal", "reduce", "candidates"):
                assert own[kind].tobytes() == expected[kind].tobytes()
    if (whole / "genotype.json").exists():
        assert (folder / "genotype.json").read_bytes() == (whole / "genotype.json").read_bytes()


def contents(folder: Path) -> dict[str, str]:
    """Return the checksum of every file in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def finish(runner: killing.Runner, words: list[Any], folder: Path) -> None:
    """Resume a killed run; begin it again if it was killed before there was one."""
    end = runner(words[0], "--resume", folder)
    if end.code == 2:
        assert not (folder / "config.yaml").exists() or not (folder / "genotype.json").exists(), end.stderr
        assert "no run" in end.stderr or "has no genotype.json" in end.stderr
        end = runner(*words, "--resume" if (folder / "config.yaml").exists() else "--out", folder)
    assert end.code == 0, end.stderr
    assert "Traceback" not in end.stderr


def make(kind: str, **settings: Any) -> Trainer:
    """Build the trainer of a small run."""
    own: dict[str, Any] = {**SETTINGS[kind], **settings}
    if kind == "search":
        return Search(SearchConfig(**own))
    if kind == "train":
        return Training(GENOTYPE, bf.TrainConfig(**own))
    if kind == "resnet":
        return ResNetTraining(ResNetConfig(**own))
    return SoftHebbTraining(bf.SoftHebbConfig(**own))


def start(kind: str, config: Any, **how: Any) -> Any:
    """Begin a run of this kind by the function of the library, or resume one; then ``config`` is None."""
    if kind == "search":
        return bf.search(config, **how)
    if kind == "train":
        return bf.train(config and GENOTYPE, config, **how)
    return get_kind(kind).trainer.start(config, **how)


def advance(trainer: Trainer, steps: int | None = None) -> None:
    """Train for ``steps`` steps, or to the end."""
    with trainer.isolated_rng():
        while not trainer.finished and steps != 0:
            trainer.enter_epoch()
            while trainer.steps_done < len(trainer.phase.batches) and steps != 0:
                trainer.step()
                steps = None if steps is None else steps - 1
            if trainer.steps_done == len(trainer.phase.batches):
                trainer.end_epoch()


def refuse(folder: Path, message: str, **settings: Any) -> None:
    """Check that resuming raises this message and changes no file."""
    before = contents(folder)
    config = SearchConfig(**{**SETTINGS["search"], **settings}) if settings else None
    with pytest.raises(InputError, match=message) as raised:
        bf.search(config, resume=folder)
    assert "\n" not in str(raised.value)
    assert contents(folder) == before
