"""Runs that are resumed: from which state, with which settings, and which are refused."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil

import pytest
import torch
import yaml

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.runs import checkpoint
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.searching import SearchConfig, method_names
from helpers import killing, reports
from helpers.genotypes import GENOTYPE
from helpers.runs import SETTINGS, advance, contents, expect_same, make, plain, put_dataset, refuse

#: Few individuals, for the methods that have a population.
POPULATION = {
    "eg": {"population": 6, "generations": 2},
    "eg-published": {"population": 6},
    "random": {"population": 6, "generations": 2},
    "evolution": {"population": 6, "generations": 2, "tournament": 3},
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(("search", {"method": method, **POPULATION.get(method, {})}) for method in method_names()),
        ("search", {"method": "eg", "eg_searches": 2, **POPULATION["eg"]}),
        ("search", {"projection_epochs": 1, "alpha_perturbation": "adversarial"}),
        ("search", {"engine": "modular", "cutout": 0}),
        ("search", {"space": "nb201", "cells": 1, "operations": ("nor_conv_3x3", "skip_connect")}),
        ("search", {"partial_channels": 2, "channels": 2, "edge_normalisation": True, "sampling": "gdas"}),
        ("search", {"operations": ("hebbian_conv_3x3", "predictive_conv_3x3")}),
        ("search", {"rules": ("frsf", "kp"), "operations": ("sep_conv_3x3", "max_pool_3x3"), "fixed": {"stem": "dfa"}}),
        ("train", {"auxiliary_weight": 0.4}),
        ("softhebb", {}),
        ("softhebb", {"rule": "random"}),
    ],
    ids=str,
)
def test_the_state_is_all_there_is_to_know(kind, settings):
    """Every method, stopped at the end of an epoch and in the middle of the last."""
    settings["epochs"] = 2
    whole = make(kind, **settings)
    advance(whole)
    before = torch.get_rng_state()
    total = sum(phase.epochs * len(phase.batches) for phase in whole.phases)
    for steps in (len(whole.phases[0].batches), total - 2):
        first, second = make(kind, **settings), make(kind, **settings)
        advance(first, steps)
        second.load_state_dict(torch.load(io.BytesIO(checkpoint.pack(first.state_dict())), weights_only=True))
        advance(second)
        assert plain(second.state_dict()) == plain(whole.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


class TestResuming:
    def test_from_python(self, stopped, whole, tmp_path):
        torch.manual_seed(1)
        result = bf.search(resume=stopped)
        expect_same(stopped, whole["search"][0])
        assert result.run_dir == stopped
        assert result.genotype == bf.Genotype.load(whole["search"][0] / "genotype.json")
        config = bf.TrainConfig(**SETTINGS["train"])
        assert plain(bf.train(GENOTYPE, config, out=False).metrics) == plain(
            RunFolder(whole["train"][0]).read_metrics()
        )

    def test_other_data_under_the_same_name_are_refused(self, stopped, monkeypatch):
        data = killing.specks(None, download=False, seed=0)
        labels = data.labels.clone()
        labels[0] = 1 - labels[0]
        other = dataclasses.replace(data, labels=labels)
        put_dataset(monkeypatch, lambda *_, **__: other)
        refuse(stopped, f"dataset '{killing.DATASET}': images or labels are not those that the run began with")

    def test_progress_hears_where_it_goes_on(self, stopped):
        heard = []

        class Listener(Progress):
            def start(self, description, epochs, steps):
                heard.append(("start", epochs, steps))

            def resume(self, epochs, steps):
                heard.append(("resume", epochs, steps))

            def step(self, loss=None):
                heard.append("step")

        bf.search(resume=stopped, progress=Listener())
        assert heard == [("start", 3, 4), ("resume", 1, 2), *["step"] * 6]

    def test_from_the_best_checkpoint(self, stopped, whole):
        shutil.copy(stopped / "best.pt", stopped / "checkpoint.pt")
        bf.search(resume=stopped)
        expect_same(stopped, whole["search"][0])

    def test_a_complete_run_is_left_alone(self, runner, whole):
        for kind, (folder, _) in whole.items():
            before = contents(folder)
            end = runner("search" if kind == "search" else "train", "--resume", folder)
            assert end.code == 0
            assert "this run is complete" in end.stderr
            assert "accuracy" in end.stdout
            assert contents(folder) == before

    def test_a_report_that_is_missing_is_written(self, whole, tmp_path):
        shutil.copytree(whole["search"][0], tmp_path / "run")
        (tmp_path / "run" / "report.html").unlink()
        with pytest.warns(bf.BionasWarning, match="complete"):
            bf.search(resume=tmp_path / "run")
        assert (tmp_path / "run" / "report.html").read_text() == reports.REPORT

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("epochs", 5, "epochs: the run .* has 3, not 5"),
            ("rules", ("usf",), r"rules: the run .* has \('usf', 'brsf'\), not \('usf',\)"),
            ("seed", 1, "seed: the run .* has 0, not 1"),
        ],
    )
    def test_other_settings_are_refused(self, name, value, message, stopped):
        refuse(stopped, message, **{name: value})

    def test_where_and_how_it_works_may_change(self, stopped, whole, tmp_path):
        bf.search(SearchConfig(**{**SETTINGS["search"], "checkpoint_every": 60.0, "device": "cpu"}), resume=stopped)
        assert (stopped / "genotype.json").read_bytes() == (whole["search"][0] / "genotype.json").read_bytes()

    def test_options_beside_resume(self, runner, stopped):
        before = contents(stopped)
        end = runner("search", "--resume", stopped, "--epochs", 9)
        assert (end.code, end.stdout) == (2, "")
        assert "epochs: the run" in end.stderr and len(end.stderr.splitlines()) == 1
        end = runner("train", "--resume", stopped)
        assert end.code == 2
        assert f"bionas-fast search --resume {stopped}" in end.stderr
        assert runner("search", "--resume", stopped, "--out", stopped / "x").code == 2
        assert contents(stopped) == before
        assert runner("search", "--resume", stopped, "--batch-size", 8, "--device", "cpu").code == 0

    def test_edited_settings_are_refused(self, stopped):
        text = (stopped / "config.yaml").read_text()
        (stopped / "config.yaml").write_text(text.replace("epochs: 3", "epochs: 4"))
        refuse(stopped, "epochs: the checkpoint has 3, not 4")

    def test_other_versions_are_noted(self, stopped, whole):
        config = yaml.safe_load((stopped / "config.yaml").read_text())
        config["machine"]["torch"] = "1.0"
        (stopped / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.warns(bf.BionasWarning, match=r"last bits .* torch 1\.0 then"):
            bf.search(resume=stopped)
        expect_same(stopped, whole["search"][0])

    def test_other_genotypes_and_rules_are_refused(self, whole, runner):
        folder, _ = whole["train"]
        before = contents(folder)
        for words in (["--rule", "fa"], ["--compare"], ["--epochs", 9]):
            end = runner("train", "--resume", folder, *words)
            assert end.code == 2, words
            assert len(end.stderr.splitlines()) == 1
        with pytest.raises(InputError, match="trains genotype"):
            bf.train(GENOTYPE.with_rule("bp"), resume=folder)
        assert contents(folder) == before


def test_the_metric_names_are_those_of_the_rows(whole):
    """The metrics that a checkpoint is checked for are those that an epoch writes."""
    for kind, (folder, _) in whole.items():
        (row, *_) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        assert {name for name, value in row.items() if isinstance(value, float)} == {
            "train_loss", "train_accuracy", "learning_rate", "seconds", *make(kind).metric_names
        }  # fmt: skip
