"""Every preset runs, at shrunken sizes, on images of the shape of its dataset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import bionas_fast as bf
from bionas_fast import InputError, presets
from bionas_fast.data import Dataset, names
from bionas_fast.data.user_data import open_folder
from bionas_fast.models import softhebb
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.searching.names import get_method
from bionas_fast.space import published
from bionas_fast.training.genotype import Training
from helpers import registries
from helpers.runs import advance

#: Images in memory: channels, size, classes.
SHAPES = {
    "digits": (1, 8, 10),
    "fashion-mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "imagenet16-120": (3, 16, 120),
}
#: The dataset of the desk.
DESK = "small:fashion-mnist,images=5000,shrink=2"
#: Sizes that are only smaller.
SHRUNKEN = {
    "search": {"channels": 4, "cells": 3, "batch_size": 4, "checkpoint_every": 0.0},
    "train": {"channels": 2, "cells": 3, "batch_size": 4},
    "resnet": {"batch_size": 4},
    "plain": {"batch_size": 4},
    "softhebb": {"batch_size": 4, "feature_batch_size": 4},
}
#: The same of images that are read from files.
FILES = {"image_size": 48, "image_resize": 50, "workers": 0}
PRESETS = [(kind, name) for kind in kind_names() for name in presets.names(kind)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of images in files, of different sizes: four classes of five."""
    root = tmp_path_factory.mktemp("photographs")
    draw = np.random.default_rng(0)
    for label in "abcd":
        (root / label).mkdir()
        for number in range(5):
            pixels = draw.integers(256, size=(60 + number, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.jpeg")
    return root


@pytest.fixture
def images(monkeypatch, photographs):
    def imagenet(data_dir=None, *, download=False, seed=0):
        return replace(open_folder("imagenet", photographs), load=None, large=True)

    def loader(name):
        channels, size, classes = SHAPES[name]

        def load(data_dir=None, *, download=False, seed=0):
            generator = torch.Generator().manual_seed(0)
            x = torch.randint(256, (4 * classes, channels, size, size), generator=generator, dtype=torch.uint8)
            y = torch.arange(4 * classes) % classes
            return Dataset.from_tensors(name, (x, y), (x[:8], y[:8]), classes)

        return load

    registries.load()
    monkeypatch.setitem(names.registry._items, "imagenet", imagenet)
    for name in SHAPES:
        monkeypatch.setitem(names.registry._items, name, loader(name))
    small = {name: tuple(b._replace(filters=4) for b in blocks) for name, blocks in softhebb.ARCHITECTURES.items()}
    monkeypatch.setattr(softhebb, "ARCHITECTURES", small)


@pytest.mark.parametrize(("kind", "name"), PRESETS)
def test_two_steps(images, kind, name):
    preset = presets.get(name, kind)
    assert preset.source
    trainer_class = get_kind(kind).trainer
    shrunken = {**preset.settings, **SHRUNKEN[kind]}
    if kind == "search" and "population" in get_method(preset.settings.get("method", "darts")).options:
        shrunken["population"] = 4
    if preset.settings["dataset"] == "imagenet":
        shrunken |= FILES
    if shrunken.get("dataset") == DESK:
        shrunken["dataset"] = "small:fashion-mnist,images=40,shrink=2"
    if preset.settings.get("valid_batch_size"):
        shrunken["valid_batch_size"] = 4
    config = get_kind(kind).settings(**shrunken)
    genotype = published("biodarts2").genotype
    trainer = Training(genotype, config) if kind == "train" else trainer_class(config)
    assert trainer.config.dataset == shrunken.get("dataset", "digits")
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
    for name, kind in (("cifar10-code", "search"), ("cifar10-train-code", "train"), ("cifar100-train-code", "train")):
        assert (get(name, kind)["initialisation"], get(name, kind)["skip_rules"]) == ("published", False)
    assert get("cifar10-train-code", "train")["drop_path_schedule"] == "constant"
    imagenet = get("imagenet-train", "train")
    assert (imagenet["epochs"], imagenet["warmup_epochs"], imagenet["linear_tail"]) == (250, 5, 5)
    assert (imagenet["learning_rate"], imagenet["batch_size"], imagenet["weight_decay"]) == (0.5, 1024, 3e-5)
    assert (imagenet["stem"], imagenet["channels"], imagenet["cells"]) == ("imagenet", 48, 14)
    assert imagenet["color_jitter"] == [0.4, 0.4, 0.4, 0.2]
    for data in ("cifar10", "cifar100"):
        for network in ("resnet20", "resnet56"):
            biotorch = get(f"{network}-{data}-biotorch", "resnet")
            assert (biotorch["dataset"], biotorch["architecture"]) == (data, network)
            assert (biotorch["epochs"], biotorch["schedule_epochs"]) == (250, [100, 150, 200])
    sixteen = get("imagenet16-120-train", "train")
    assert (sixteen["epochs"], sixteen["batch_size"], sixteen["channels"], sixteen["cells"]) == (250, 1024, 48, 14)
    search = get("imagenet16-120-paper", "search")
    assert (search["learning_rate"], search["batch_size"]) == (0.5, 512)


#: The rows of the published experiments: data, and what is done with them; each has a preset.
ROWS = {
    "search": {"cifar10", "cifar100", "imagenet16-120", "digits", "fashion-mnist", DESK},
    "train": {"cifar10", "cifar100", "imagenet16-120", "imagenet", "digits", "fashion-mnist", DESK},
    "resnet": {"cifar10", "cifar100", "imagenet", "fashion-mnist", DESK},
    "plain": set(),
    "softhebb": {"cifar10", "fashion-mnist", DESK},
}


def test_every_row_has_a_preset():
    found = {kind: {p.settings["dataset"] for p in presets.every() if p.kind == kind} for kind in kind_names()}
    assert found == ROWS
    spaces = {p.settings.get("space", "bionas") for p in presets.every() if p.kind == "search"}
    assert spaces == {"bionas", "bionas-hl-pc", "darts-bp", "nb201"}


def test_names_are_those_of_one_preset():
    assert len(set(presets.names())) == len(presets.every())
    assert presets.get("cpu-fashion") == presets.get("cpu-fashion", "search")
    with pytest.raises(InputError, match="unknown preset 'cpu-fasion'; did you mean 'cpu-fashion'"):
        presets.get("cpu-fasion")
    with pytest.raises(InputError, match="unknown train preset 'cpu-fashion'"):
        presets.get("cpu-fashion", "train")
