"""Runs repeated over seeds: each is the run that it is alone; they are resumed, and complete ones are not repeated."""

from __future__ import annotations

import csv
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.errors import Interrupted
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.repeat import PlannedRun, Variant, repeat
from bionas_fast.runs.seeds import SeedTable
from bionas_fast.training.resnet import ResNetConfig, ResNetTraining, train_resnet
from helpers import killing
from helpers.genotypes import GENOTYPE
from helpers.runs import SETTINGS, advance, contents, expect_same

SMALL = {**SETTINGS["resnet"], "batch_size": 32}


class Calls(list):
    """The trainings that were started: (rule, seed, whether resumed)."""

    def train(self, config, *, out=None, resume=None, progress=None):
        self.append((config.rule, config.seed, resume is not None))
        return train_resnet(config, out=out, resume=resume, progress=progress)


@pytest.fixture
def calls():
    return Calls()


def variant(rule, calls, seeds=(0,), **settings):
    def planned(seed):
        config = ResNetConfig(**{**SMALL, "rule": rule, "seed": seed, **settings})
        return PlannedRun(ResNetTraining, config, calls.train)

    return Variant(rule, {seed: planned(seed) for seed in seeds}, rule)


def run(variants, folder, **how) -> SeedTable:
    return repeat(variants, folder, metric="test accuracy %", **how)


def module_rule(module: nn.Module) -> str:
    return str(getattr(module, "rule", "bp"))


def read(folder: Path) -> dict[tuple[str, int], float]:
    with (folder / "table.csv").open() as file:
        return {(row["variant"], int(row["seed"])): float(row["test accuracy %"]) for row in csv.DictReader(file)}


def test_each_run_is_the_one_it_is_alone_and_happens_once(calls, tmp_path):
    variants = [variant("usf", calls, (3, 4)), variant("fa", calls, (3, 4))]
    table = run(variants, tmp_path / "all")
    assert calls == [("usf", 3, False), ("fa", 3, False), ("usf", 4, False), ("fa", 4, False)]
    assert table.folder == tmp_path / "all"
    data = killing.specks(None, download=False, seed=0)
    for name, seed, _ in calls[:3]:
        alone = train_resnet(ResNetConfig(**{**SMALL, "rule": name, "seed": seed}), out=tmp_path / f"{name}{seed}")
        expect_same(tmp_path / "all" / name / f"seed-{seed}", alone.run_dir)
        network = bf.load(tmp_path / "all" / name / f"seed-{seed}")
        found = bf.evaluate(network, data.test)
        assert read(tmp_path / "all")[name, seed] == found["accuracy"]
    assert run(variants, tmp_path / "all") == table
    assert len(calls) == 4
    # More seeds and variants join; the others stay.
    more = run([variant(rule, calls, (3, 4, 5)) for rule in ("usf", "fa", "bp")], tmp_path / "all")
    assert calls[4:] == [("bp", 3, False), ("bp", 4, False), ("usf", 5, False), ("fa", 5, False), ("bp", 5, False)]
    for before, after in zip(table.series, more.series, strict=False):
        assert before.values.items() <= after.values.items()
    for series in more.series:
        network = bf.load(tmp_path / "all" / series.name / "seed-4")
        by_rule = Counter()
        for module in network.modules():
            norm = isinstance(module, nn.BatchNorm2d)
            by_rule["norm" if norm else module_rule(module)] += sum(p.numel() for p in module.parameters(recurse=False))
        assert series.shares[4] == pytest.approx(100 * by_rule["bp"] / by_rule.total())
        assert (series.shares[4] > 90) == (series.name == "bp")


@pytest.mark.parametrize("steps", [0, 3, 4])
def test_stopped_runs_are_resumed(steps, calls, tmp_path):
    """With all metrics written and the last checkpoint missing, a run is not complete either."""
    trainer = ResNetTraining(ResNetConfig(**{**SMALL, "rule": "usf"}))
    with RunFolder.create(tmp_path / "usf" / "seed-0") as folder:
        trainer.write_beginning(folder)
        advance(trainer, min(steps, 3))
        if steps:
            folder.write_checkpoint(trainer.state_dict())
        advance(trainer, steps - 3 if steps == 4 else 0)
        folder.write_metrics(trainer.metrics)
    if steps:
        run([variant("usf", calls)], tmp_path)
    else:
        with pytest.warns(bf.BionasWarning, match="no checkpoint yet"):
            run([variant("usf", calls)], tmp_path)
    assert calls == [("usf", 0, True)]
    train_resnet(ResNetConfig(**{**SMALL, "rule": "usf"}), out=tmp_path / "alone")
    expect_same(tmp_path / "usf" / "seed-0", tmp_path / "alone")


def test_other_settings_and_other_genotypes_are_refused(calls, tmp_path):
    run([variant("usf", calls)], tmp_path)
    before = contents(tmp_path / "usf" / "seed-0")
    with pytest.raises(InputError, match=r"usf/seed-0: epochs: the checkpoint has 2, not 3"):
        run([variant("usf", calls, epochs=3)], tmp_path)
    assert run([variant("usf", calls, device="cpu")], tmp_path)  # does not affect the result
    config = bf.TrainConfig(**{**SETTINGS["train"], "epochs": 1})
    bf.compare_rules(GENOTYPE, config, variants=["genotype"], out=tmp_path / "genotypes")
    other = GENOTYPE.with_rule("bp")
    with pytest.raises(InputError, match=r"genotype/seed-0: its genotype\.json is not the one of this comparison"):
        bf.compare_rules(other, config, variants=["genotype"], out=tmp_path / "genotypes")
    shutil.copytree(tmp_path / "usf" / "seed-0", tmp_path / "foreign" / "genotype" / "seed-0")
    with pytest.raises(InputError, match="holds a run of kind 'resnet', not 'train'"):
        bf.compare_rules(GENOTYPE, config, variants=["genotype"], out=tmp_path / "foreign")
    (tmp_path / "usf" / "seed-0" / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="damaged"):
        run([variant("usf", calls)], tmp_path)
    del before["checkpoint.pt"]
    assert before.items() <= contents(tmp_path / "usf" / "seed-0").items()
    assert len(calls) == 1


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(calls, tmp_path):
    wild = variant("usf", calls, (0, 1), learning_rate=1e6, gradient_clip=1e30)
    table = run([wild, variant("bp", calls, (0, 1))], tmp_path)
    assert [(series.name, sorted(series.values)) for series in table.series] == [("usf", []), ("bp", [0, 1])]
    assert len(table.failures) == 2
    for seed, failure in enumerate(table.failures):
        assert failure.startswith(f"usf, seed {seed}: ") and "not finite" in failure and "learning_rate" in failure
    assert (tmp_path / "table.csv").read_text().count("usf,0,,") == 1
    assert table.rows()[0]["seeds"] == "0 (2 failed)"
    assert (tmp_path / "table.md").read_text().count("- failed: usf, seed") == 2


def test_folders_of_something_else_are_refused(calls, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.md").write_text("mine")
    (tmp_path / "file").write_text("")
    train_resnet(ResNetConfig(**SMALL), out=tmp_path / "run")
    for name, message in (("mine", "is not empty and holds no runs"), ("run", "is the folder of a run")):
        before = contents(tmp_path / name)
        with pytest.raises(InputError, match=message):
            run([variant("usf", calls)], tmp_path / name)
        assert contents(tmp_path / name) == before
    with pytest.raises(InputError, match="cannot write to"):
        run([variant("usf", calls)], tmp_path / "file")
    assert not calls


def test_an_interruption_between_steps_of_a_run(calls, tmp_path):
    """Outside a training, while data is read, nothing else says how to go on."""

    def interrupted(config, **_):
        raise KeyboardInterrupt

    planned = variant("fa", calls).runs[0]
    late = Variant("fa", {0: replace(planned, start=interrupted)}, "fa")
    folder = tmp_path / "a folder"
    with pytest.raises(Interrupted, match=r"interrupted in fa, seed 0; .* the same command with --out '.*a folder'"):
        run([variant("usf", calls), late], folder)
    assert set(read(folder)) == {("usf", 0)}


WORDS = ["--compare", "genotype,fa:everywhere,shuffle:1", "--seeds", 2, "--epochs", 1, "--batch-size", 24]


@pytest.fixture(scope="module")
def words(begin):
    return [*begin["train"], *WORDS]


@pytest.fixture(scope="module")
def uninterrupted(runner, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "whole"
    end = runner(*words, "--out", folder)
    assert end.code == 0, end.stderr
    return folder, end


class TestCommand:
    def test_table(self, uninterrupted):
        folder, end = uninterrupted
        for name in ("genotype", "fa:everywhere", "shuffle:1"):
            assert f" {name} " in end.stdout
            for seed in (0, 1):
                accuracy = read(folder)[name, seed]
                assert f"{name}, seed {seed}: {accuracy:.2f} %" in end.stderr
                trained = bf.load(folder / name.replace(":", "-") / f"seed-{seed}").genotype
                expected = {
                    "genotype": GENOTYPE,
                    "fa:everywhere": GENOTYPE.with_rule("fa", everywhere=True),
                    "shuffle:1": GENOTYPE.with_shuffled_rules(1),
                }
                assert trained == expected[name]
        assert str(folder) in end.stdout
        page = (folder / "report.html").read_text()
        assert "shuffle:1" in page and "fa-everywhere/seed-1" in page and "<svg" in page

    def test_interrupted_and_given_again(self, runner, words, uninterrupted, tmp_path):
        """In a later run than the first."""
        folder, _ = uninterrupted
        end = runner(*words, "--out", tmp_path / "runs", signal_at_step=(11, signal.SIGINT.value))
        assert end.code == 130
        assert f"to continue, give the same command with --out {tmp_path / 'runs'}" in end.stderr.splitlines()[-1]
        end = runner(*words, "--resume", tmp_path / "runs")
        assert end.code == 0, end.stderr
        assert (tmp_path / "runs" / "table.csv").read_text() == (folder / "table.csv").read_text()
        for whole in folder.glob("*/seed-*"):
            expect_same(tmp_path / "runs" / whole.relative_to(folder), whole)

    @pytest.mark.parametrize("write", [2, 40])
    def test_killed_at_any_moment(self, write, runner, words, uninterrupted, tmp_path):
        folder, _ = uninterrupted
        assert runner(*words, "--out", tmp_path / "runs", kill_at_write=write).code == -signal.SIGKILL
        end = runner(*words, "--out", tmp_path / "runs")
        assert end.code == 0, end.stderr
        assert (tmp_path / "runs" / "table.csv").read_text() == (folder / "table.csv").read_text()

    def test_a_failed_run_is_an_error_after_the_table(self, runner, begin, tmp_path):
        words = [*begin["train"], "--epochs", 1, "--set", "learning_rate=1e6", "--set", "gradient_clip=1e30"]
        end = runner(*words, "--seeds", 1, "--out", tmp_path / "runs")
        assert end.code == 2
        assert "– " in end.stdout
        last = end.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and ", seed 0: " in last and "not finite" in last
