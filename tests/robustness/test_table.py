"""Tables and plots of attacks, and the command, on networks of known robustness."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch

import bionas_fast as bf
from bionas_fast.cli.app import main
from bionas_fast.report.robustness import accuracy_figure
from bionas_fast.robustness import Outcome, Robustness, table
from bionas_fast.training import substitute


def result(clean, **left):
    """A result of an attack ``pgd-10`` at ε = 0.1 that leaves these numbers of ten images correct, by gradient."""

    def first(count):
        return torch.arange(10) < count

    outcomes = [Outcome("pgd-10", gradient, 0.1, first(count)) for gradient, count in left.items()]
    return Robustness(first(clean), (*outcomes, Outcome("cw-5", None, None, first(0), (0.5, 0.25, 1.0))), ("why",))


@pytest.fixture
def results():
    return {"a": result(9, feedback=7, true=3), "b": result(8, feedback=8, true=8)}


def test_rows(results):
    rows = [list(row.values()) for row in table.rows(results)]
    assert [row[:3] for row in rows] == [
        ["none", "–", "–"],
        ["pgd-10", "feedback", "0.1"],
        ["pgd-10", "true", "0.1"],
        ["pgd-10", "blindness", "0.1"],
        ["cw-5", "–", "–"],
        ["worst case", "–", "0.1"],
    ]
    values = [[re.match(r"[+-]?[\d.]+", cell)[0] for cell in row[3:]] for row in rows]
    assert values == [
        ["90.0", "80.0"],
        ["70.0", "80.0"],
        ["30.0", "80.0"],
        ["+40.0", "+0.0"],
        ["0.0"] * 2,
        ["30.0", "80.0"],
    ]
    assert rows[4][3].endswith(", 0.50")
    clean = torch.arange(10) < 9
    withstood = Robustness(clean, (Outcome("cw-5", None, None, clean),))
    assert table.rows({"a": withstood})[1]["a"].endswith(", –")


def test_files(results, tmp_path):
    table.write(results, tmp_path)
    assert "| pgd-10 | true | 0.1 | 30.0 (" in (tmp_path / "table.md").read_text()
    assert "- a: why" in (tmp_path / "table.md").read_text()
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["network"], row["attack"], row["gradient"], row["accuracy"]) for row in rows][:3] == [
        ("a", "none", "", "90.0"),
        ("a", "pgd-10", "feedback", "70.0"),
        ("a", "pgd-10", "true", "30.0"),
    ]
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["records"][1]["of_correct"] == pytest.approx(100 * 7 / 9)
    assert content["warnings"] == {"a": ["why"], "b": ["why"]}


def test_plot_shows_every_gradient_of_every_network(results):
    (axes,) = accuracy_figure(table.records(results)).axes
    drawn = {
        (line.get_label(), line.get_linestyle()): line.get_ydata()[-1]
        for line in axes.lines
        if len(line.get_xdata()) == 2 and not line.get_label().startswith("_")
    }
    assert drawn == {("a", "-"): 70, ("a", "--"): 30, ("b", "-"): 80, ("b", "--"): 80}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for rule in ("bp", "fa"):
        bf.train_resnet(bf.ResNetConfig(epochs=1, batch_size=128, rule=rule, learning_rate=0.1), out=folder / rule)
    return folder


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main(["attack", *map(str, words)])
    return stop.value.code


def test_command(runs, tmp_path, capsys):
    words = (runs / "bp", f"other={runs / 'fa'}", "--images", 20, "--attacks", "fgsm, noise", "--eps", "8/255, 0.2")
    assert command(*words, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert re.search(r"attack +gradient +ε +bp +other", printed)
    settings = "20 images, draws of noise 1, step size 2/255, restarts 1, seed 0."
    assert f"Settings: {settings}" in " ".join(printed.split())
    assert f"Settings: {settings}" in (tmp_path / "out" / "table.md").read_text()
    assert re.search(r"fgsm +blindness +8/255 +\+0.0 ± 0.0", printed)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"bp", "other", "table.md", "table.csv", "table.json", "accuracy.svg"}
    before = (tmp_path / "out" / "bp" / "outcomes.jsonl").read_bytes()
    assert command(*words, "--out", tmp_path / "out", "--json") == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 2 * (1 + 2 * 2 + 2)
    assert (tmp_path / "out" / "bp" / "outcomes.jsonl").read_bytes() == before
    data, network = bf.load_dataset("digits"), bf.load(runs / "bp")
    clean = bf.evaluate(network, data.test.take(torch.arange(len(data.test)) < 20))
    assert records[0]["accuracy"] == clean["accuracy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--attacks", "pdg"), "unknown attack 'pdg'; did you mean 'pgd'"),
        (("--eps", "300/255"), "eps"),
        (("--eps", "0.1,0.1"), "eps: expected different values"),
        (("--eps", "8/0"), "eps: expected a number such as 0.03 or 8/255, got '8/0'"),
        (("--gradient", "both ways"), "gradient"),
        (("--images", "0"), "images"),
    ],
)
def test_bad_options(words, message, runs, tmp_path, capsys):
    assert command(runs / "bp", *words, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("error: ")
    assert message in printed


def test_runs_that_cannot_be_attacked(runs, tmp_path, capsys):
    small = {"epochs": 1, "channels": 1, "cells": 1, "batch_size": 512, "train_fraction": 0.1}
    config = bf.SearchConfig(**small, rules=("usf",), operations=("skip_connect", "max_pool_3x3"))
    bf.search(config, out=tmp_path / "search")
    assert command(tmp_path / "search") == 2
    assert f"train one first: bionas-fast train {tmp_path / 'search'}" in capsys.readouterr().err
    assert command(runs / "bp", runs / "bp") == 2
    assert "'bp' names two runs; name them: NAME=RUN" in capsys.readouterr().err
    assert command(tmp_path / "nothing") == 2
    assert "no run folder" in capsys.readouterr().err
    other = bf.ResNetConfig(dataset="noise:3x8x8,classes=10,images=20", epochs=1)
    bf.train_resnet(other, out=tmp_path / "coloured")
    words = ("--attacks", "transfer", "--source", tmp_path / "coloured", "--out", tmp_path / "out")
    assert command(runs / "bp", *words) == 2
    assert "in_channels is 1, but the network was trained with 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_transfer_without_a_source_trains_one(tmp_path, capsys, monkeypatch):
    """A network under bp on the run's dataset, once, in the folder of the results; then as with that as the source."""
    monkeypatch.setattr(substitute, "_EPOCHS", 2)
    data = {"dataset": "noise:1x8x8,classes=2,images=64"}
    bf.train_resnet(bf.ResNetConfig(**data, rule="usf", epochs=1), out=tmp_path / "run")
    words = [
        "attack",
        str(tmp_path / "run"),
        "--attacks",
        "transfer-2",
        "--images",
        "20",
        "--out",
        str(tmp_path / "out"),
    ]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code
        assert f"in {tmp_path / 'out' / 'bp-substitute'}; --source RUN" in capsys.readouterr().err
    rows = (tmp_path / "out" / "bp-substitute" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2  # 64,000 images would be 1,000 epochs
    source = bf.load(tmp_path / "out" / "bp-substitute")
    config = bf.AttackConfig(attacks=("transfer-2",), images=20)
    expected = bf.attack(bf.load(tmp_path / "run"), bf.load_dataset(data["dataset"]), config, source=source)
    (line,) = (tmp_path / "out" / "run" / "outcomes.jsonl").read_text().splitlines()
    kept = expected.outcomes[0].correct[expected.clean]
    assert json.loads(line)["correct"] == "".join(str(int(bit)) for bit in kept)
