"""Records of layers during training, and the command that shows them."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image

import bionas_fast as bf
from bionas_fast.analysis import measure_alignment, measure_gradients, measure_weights, probe, record_layers
from bionas_fast.cli.app import main
from bionas_fast.data import configured
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.progress import Progress

SMALL = {"epochs": 3, "batch_size": 256, "rule": "fa", "learning_rate": 0.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two trainings, one with records of every second epoch, and a search."""
    folder = tmp_path_factory.mktemp("runs")
    bf.train_resnet(bf.ResNetConfig(**SMALL, record_layers=2), out=folder / "recorded")
    bf.train_resnet(bf.ResNetConfig(**SMALL), out=folder / "plain")
    search = bf.SearchConfig(
        epochs=1, channels=1, cells=3, batch_size=512, rules=("usf",), operations=("skip_connect", "sep_conv_3x3")
    )
    bf.search(search, out=folder / "search")
    return folder


def test_records_are_those_of_the_measuring_functions():
    network = bf.build_resnet("resnet20", rule="fa", in_channels=1)
    batches = probe(bf.load_dataset("digits").train)
    assert [len(y) for _, y in batches] == [64] * 8
    rows = record_layers(network, batches, 5)
    gradients = {own.name: own for own in measure_gradients(network, batches)}
    angles = {own.name: own for own in measure_alignment(network)}
    weights = {own.name: own for own in measure_weights(network)}
    assert [row["layer"] for row in rows] == list(gradients)
    for row in rows:
        name = row["layer"]
        assert (row["epoch"], row["rule"]) == (5, "fa")
        assert (row["variance"], row["cosine"]) == (gradients[name].variance, gradients[name].cosine)
        assert (row["angle"], row["sigma"]) == (angles[name].angle, weights[name].sigma)


def test_a_run_records_its_layers_and_learns_the_same(runs):
    rows = RunFolder.open(runs / "recorded").read_rows("layers.jsonl")
    assert sorted({row["epoch"] for row in rows}) == [0, 2, 3]
    start, end = ([row for row in rows if row["epoch"] == epoch] for epoch in (0, 2))
    assert len(start) == len(end) == 20
    assert [row["angle"] for row in start] != [row["angle"] for row in end]
    recorded, plain = (bf.load(runs / name).state_dict() for name in ("recorded", "plain"))
    assert all(torch.equal(value, plain[name]) for name, value in recorded.items())
    assert not (runs / "plain" / "layers.jsonl").exists()


class Stopping(Progress):
    def epoch(self, row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_has_the_same_records(runs, tmp_path):
    config = bf.ResNetConfig(**SMALL, record_layers=2)
    with pytest.raises(KeyboardInterrupt):
        bf.train_resnet(config, out=tmp_path / "run", progress=Stopping())
    bf.train_resnet(resume=tmp_path / "run")
    whole = (runs / "recorded" / "layers.jsonl").read_bytes()
    assert (tmp_path / "run" / "layers.jsonl").read_bytes() == whole


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main(["analyze", *map(str, words)])
    return stop.value.code


def test_command(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(runs / "recorded", f"other={runs / 'plain'}", runs / "search", "--out", out) == 0
    printed = capsys.readouterr().out
    assert re.search(r"network +variance +noise scale +cosine", printed)
    assert re.search(r"entropy of α, search +[\d.]+ → [\d.]+ bits", printed)
    names = {path.name for path in out.iterdir()}
    svgs = {"gradients.svg", "alignment.svg", "weights.svg"}
    found = {"operations.svg": "sep_conv_3x3", "rules.svg": "usf", "entropy.svg": "search"}
    assert names == {*svgs, *found, "layers.csv", "weights.csv", "composition.csv", "entropy.csv"}
    with open(out / "layers.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["network"], row["epoch"]) for row in rows} == {
        *(("recorded", epoch) for epoch in "023"),
        ("other", "3"),
    }
    for name in svgs:
        text = (out / name).read_text()
        assert text.lstrip().startswith("<?xml")
        assert "other" in text
    for name, text in found.items():
        assert text in (out / name).read_text()


def test_images_in_files_are_read_as_in_training(tmp_path):
    for index, image in enumerate(np.random.default_rng(0).integers(0, 256, (36, 12, 12, 3), dtype=np.uint8)):
        for part in ("train", "test"):
            folder = tmp_path / "data" / part / f"class{index % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.png")
    config = bf.ResNetConfig(
        dataset=f"folder:{tmp_path / 'data'}", in_memory=False, image_size=8, image_resize=10, workers=0, epochs=1
    )
    bf.train_resnet(config, out=tmp_path / "run")
    assert command(tmp_path / "run", "--out", tmp_path / "out") == 0
    expected = record_layers(bf.load(tmp_path / "run"), probe(configured(config).train), 1)
    with open(tmp_path / "out" / "layers.csv") as file:
        found = [float(row["variance"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([row["variance"] for row in expected])


def test_bad_input(runs, tmp_path, capsys):
    assert command(tmp_path / "nothing") == 2
    assert "no run folder" in capsys.readouterr().err
    assert command(runs / "plain", runs / "plain") == 2
    assert "names two runs" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command(runs / "search", "--out", tmp_path / "file") == 2
    assert f"error: cannot write to {tmp_path / 'file'}: File exists" in capsys.readouterr().err
