"""Every preset runs, at shrunken sizes, on images of the shape of its dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import bionas_fast as bf
from bionas_fast import presets
from bionas_fast.data import Dataset, FileDataset, registry
from bionas_fast.data.file_dataset import Files
from bionas_fast.models import softhebb
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.space import published
from bionas_fast.train.genotype import Training
from helpers.runs import advance

SHAPES = {
    "digits": (1, 8, 10),
    "fashion-mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "imagenet16-120": (3, 16, 120),
}
#: Sizes that are only smaller.
SHRUNKEN = {
    "search": {"channels": 4, "cells": 3, "batch_size": 4, "checkpoint_every": 0.0},
    "train": {"channels": 2, "cells": 3, "batch_size": 4},
    "resnet": {"batch_size": 4},
    "softhebb": {"batch_size": 4, "feature_batch_size": 4},
}
PRESETS = [(kind, name) for kind in kind_names() for name in presets.names(kind)]


@pytest.fixture
def images(monkeypatch, tmp_path):
    def loader(name):
        channels, size, classes = SHAPES[name]

        def load(data_dir=None, *, download=False, seed=0):
            generator = torch.Generator().manual_seed(0)
            x = torch.randint(256, (4 * classes, channels, size, size), generator=generator, dtype=torch.uint8)
            y = torch.arange(4 * classes) % classes
            return Dataset.from_tensors(name, (x, y), (x[:8], y[:8]), classes)

        return load

    def photographs(data_dir=None, *, download=False, seed=0):
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        files = Files(tmp_path, [f"{index}.png" for index in range(12)], torch.arange(12))
        return FileDataset("imagenet", files, files, 1000)

    for name in SHAPES:
        monkeypatch.setitem(registry._registry._items, name, loader(name))
    monkeypatch.setitem(registry._registry._items, "imagenet", photographs)
    small = {name: tuple(b._replace(filters=4) for b in blocks) for name, blocks in softhebb.ARCHITECTURES.items()}
    monkeypatch.setattr(softhebb, "ARCHITECTURES", small)


@pytest.mark.parametrize(("kind", "name"), PRESETS)
def test_two_steps(images, kind, name):
    preset = presets.get(name, kind)
    assert preset.source
    trainer_class = get_kind(kind)
    shrunken = {**preset.settings, **SHRUNKEN[kind]}
    if "population" in trainer_class.settings.model_fields and preset.settings.get("method", "darts") != "darts":
        shrunken["population"] = 4
    if preset.settings.get("valid_batch_size"):
        shrunken["valid_batch_size"] = 4
    if preset.settings.get("dataset") == "imagenet":
        shrunken["workers"] = 0
    config = trainer_class.settings(**shrunken)
    genotype = published("biodarts2").genotype
    trainer = Training(genotype, config) if kind == "train" else trainer_class(config)
    assert trainer.config.dataset == preset.settings.get("dataset", "digits")
    advance(trainer, 2)
    assert trainer.steps_done == 2
    assert all(parameter.isfinite().all() for parameter in trainer.net.parameters())


def test_settings_of_the_sources():
    """Figures of the paper, of its code and of EG-NAS that a preset must have."""

    def get(name, kind):
        return presets.get(name, kind).settings

    paper = get("cifar10-paper", "search")
    assert (paper["batch_size"], paper["cells"], paper["learning_rate"], paper["nesterov"]) == (256, 5, 0.1, True)
    code = get("cifar10-code", "search")
    assert (code["batch_size"], code["cells"], code["skip_rules"]) == (64, 8, False)
    eg = get("cifar10-eg", "search")
    assert (eg["batch_size"], eg["valid_batch_size"], eg["warmup_epochs"]) == (256, 128, 15)
    assert "none" not in eg["operations"]
    assert {*eg["operations"], "none"} == {c.operation for c in bf.space.get_space("bionas").candidates}
    assert get("cifar10-train", "train")["drop_path"] == 0.2
    assert get("cifar10-eg-train", "train")["drop_path"] == 0.3
    assert get("cifar10-train-code", "train")["drop_path_schedule"] == "constant"
    sixteen = get("imagenet16-120-train", "train")
    assert (sixteen["epochs"], sixteen["batch_size"], sixteen["channels"], sixteen["cells"]) == (250, 1024, 48, 14)
    large = get("imagenet-train", "train")
    assert (large["epochs"], large["warmup_epochs"], large["linear_tail"], large["batch_size"]) == (250, 5, 5, 1024)
    assert (large["channels"], large["cells"], large["color_jitter"]) == (48, 14, [0.4, 0.4, 0.4, 0.2])
    assert (large["label_smoothing"], large["auxiliary_weight"], large["weight_decay"]) == (0.1, 0.4, 3e-5)
    search = get("imagenet16-120-paper", "search")
    assert (search["learning_rate"], search["batch_size"]) == (0.5, 512)
