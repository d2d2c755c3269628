"""Runs that are stopped, in every way there is: what they end with is what they would have ended with."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import bionas_fast as bf
from bionas_fast import InputError, report
from bionas_fast.config import changeable
from bionas_fast.data import registry
from bionas_fast.runs import checkpoint, tensorboard
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.signals import Interrupts
from bionas_fast.runs.trainer import Loop
from bionas_fast.search import Search, SearchConfig, method_names
from bionas_fast.train.genotype import Training
from bionas_fast.train.softhebb import SoftHebbTraining
from helpers import killing
from helpers.genotypes import GENOTYPE

KILL, INTERRUPT, TERMINATE = signal.SIGKILL.value, signal.SIGINT.value, signal.SIGTERM.value

#: Everything that draws random numbers is on, and there is a checkpoint after every step.
SETTINGS = {
    "search": {
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
    "train": {"channels": 1, "cells": 2, "epochs": 4, "batch_size": 8, "flip": True, "drop_path": 0.3},
    "softhebb": {"feature_batch_size": 8, "layerwise": True, "epochs": 3, "batch_size": 8},
}
SETTINGS = {kind: {"dataset": killing.DATASET, "checkpoint_every": 0.0, **own} for kind, own in SETTINGS.items()}


@pytest.fixture(autouse=True)
def _specks(monkeypatch):
    monkeypatch.setitem(registry._registry._items, killing.DATASET, killing.specks)
    monkeypatch.setattr(report, "write_report", killing.write_report)


@pytest.fixture(scope="module")
def runner():
    with killing.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """The arguments that begin a run of each kind."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "genotype.json").write_text(GENOTYPE.to_json())
    words = {"search": ["search"], "train": ["train", folder / "genotype.json"], "softhebb": ["train", "softhebb"]}
    for kind, settings in SETTINGS.items():
        text = yaml.safe_dump({n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()})
        (folder / f"{kind}.yaml").write_text(text)
    return {kind: [*own, "--config", folder / f"{kind}.yaml"] for kind, own in words.items()}


@pytest.fixture(scope="module")
def whole(runner, begin, tmp_path_factory):
    """For each kind the folder of a run that nothing stopped, and how long it took."""
    found = {}
    for kind, words in begin.items():
        folder = tmp_path_factory.mktemp("whole") / kind
        end = runner(*words, "--out", folder)
        assert end.code == 0, end.stderr
        found[kind] = folder, end.seconds
    return found


def plain(value):
    """Nested values in a form that compares bit by bit, without what was measured by a clock."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        free = ("seconds", *changeable(bf.SearchConfig))
        return {name: plain(own) for name, own in value.items() if name not in free}
    return [plain(own) for own in value] if isinstance(value, (list, tuple)) else value


def expect_same(folder: Path, whole: Path) -> None:
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
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def finish(runner, words, folder: Path) -> None:
    """Resume a killed run; begin it again if it was killed before there was one."""
    end = runner(words[0], "--resume", folder)
    if end.code == 2:
        assert not (folder / "config.yaml").exists() or not (folder / "genotype.json").exists(), end.stderr
        assert "no run" in end.stderr or "has no genotype.json" in end.stderr
        end = runner(*words, "--resume" if (folder / "config.yaml").exists() else "--out", folder)
    assert end.code == 0, end.stderr
    assert "Traceback" not in end.stderr


class TestKilled:
    """By SIGKILL, at moments spread over the whole run."""

    @pytest.mark.parametrize(("kind", "count"), [("search", 20), ("train", 5), ("softhebb", 4)])
    def test_at_any_moment(self, kind, count, runner, begin, whole, tmp_path):
        expected, seconds = whole[kind]
        chance = random.Random(0)
        for i in range(count):
            part = (i + chance.random()) / count
            folder = tmp_path / str(i)
            while (end := runner(*begin[kind], "--out", folder, signals=[(part * seconds, KILL)])).code == 0:
                # Done before its moment came: it was quicker than the run that was measured.
                seconds = 0.99 * min(seconds, end.seconds)
                shutil.rmtree(folder)
            assert end.code == -KILL, end.stderr
            finish(runner, begin[kind], folder)
            expect_same(folder, expected)

    @pytest.mark.parametrize(("kind", "count"), [("search", 8), ("train", 4)])
    def test_while_it_writes(self, kind, count, runner, begin, whole, tmp_path):
        """Half a file, a whole one under its first name, and one in place, among all that a run writes."""
        expected, _ = whole[kind]
        chance = random.Random(1)
        last = {"search": 80, "train": 60}[kind]
        for third, moment in enumerate([0, 1, 2, *sorted(chance.sample(range(3, last), count - 3))]):
            folder = tmp_path / str(third)
            assert runner(*begin[kind], "--out", folder, kill_at_write=moment).code == -KILL
            finish(runner, begin[kind], folder)
            expect_same(folder, expected)

    def test_again_and_again(self, runner, begin, whole, tmp_path):
        expected, _ = whole["search"]
        end = runner(*begin["search"], "--out", tmp_path / "run", kill_at_write=9)
        for _ in range(30):
            if end.code == 0:
                break
            assert end.code == -KILL
            end = runner("search", "--resume", tmp_path / "run", kill_at_write=17)
        assert end.code == 0, end.stderr
        expect_same(tmp_path / "run", expected)

    def test_before_the_first_checkpoint(self, runner, begin, whole, tmp_path):
        runner(*begin["search"], "--out", tmp_path / "run", kill_at_write=3)
        assert not (tmp_path / "run" / "checkpoint.pt").exists()
        end = runner("search", "--resume", tmp_path / "run")
        assert end.code == 0
        assert "no checkpoint yet; starts from the beginning" in end.stderr
        expect_same(tmp_path / "run", whole["search"][0])


class TestInterrupted:
    @pytest.mark.parametrize("number", [INTERRUPT, TERMINATE], ids=["SIGINT", "SIGTERM"])
    def test_saves_and_says_how_to_go_on(self, number, runner, begin, whole, tmp_path):
        folder = tmp_path / "a run"
        end = runner(*begin["search"], "--checkpoint-every", 1e6, "--out", folder, signal_at_step=(7, number))
        assert end.code == 130
        assert end.stdout == ""
        said = end.stderr.strip().splitlines()
        assert said[-1] == f"interrupted; go on with: bionas-fast search --resume '{folder}'"
        state = RunFolder.open(folder).read_checkpoint()
        assert (state["epoch"], state["tally"]["steps"]) == (1, 3)  # of 4 steps an epoch
        finish(runner, ["search"], folder)
        expect_same(folder, whole["search"][0])

    def test_training_too(self, runner, begin, whole, tmp_path):
        end = runner(*begin["softhebb"], "--out", tmp_path / "run", signal_at_step=(5, INTERRUPT))
        assert end.code == 130
        assert f"bionas-fast train --resume {tmp_path / 'run'}" in end.stderr
        finish(runner, ["train"], tmp_path / "run")
        expect_same(tmp_path / "run", whole["softhebb"][0])

    def test_the_second_signal_stops_at_once(self):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_two_signals_at_once_do_no_damage(self, runner, begin, whole, tmp_path):
        end = runner(*begin["search"], "--out", tmp_path / "run", signal_at_step=(6, INTERRUPT, TERMINATE))
        assert end.code == 130
        assert "Traceback" not in end.stderr
        finish(runner, begin["search"], tmp_path / "run")
        expect_same(tmp_path / "run", whole["search"][0])

    def test_ignored_signals_stay_ignored(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with Interrupts() as interrupts:
                signal.raise_signal(signal.SIGINT)
                assert not interrupts.asked
        finally:
            signal.signal(signal.SIGINT, before)


def make(kind: str, **settings) -> Loop:
    own = {**SETTINGS[kind], **settings}
    if kind == "search":
        return Search(SearchConfig(**own))
    if kind == "train":
        return Training(GENOTYPE, bf.TrainConfig(**own))
    return SoftHebbTraining(bf.SoftHebbConfig(**own))


def advance(loop: Loop, steps: int | None = None) -> None:
    """So many steps, or to the end."""
    with loop.own_randomness():
        while not loop.finished and steps != 0:
            loop.enter_epoch()
            while loop.steps_done < len(loop.phase.batches) and steps != 0:
                loop.step()
                steps = None if steps is None else steps - 1
            if loop.steps_done == len(loop.phase.batches):
                loop.end_epoch()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(("search", {"method": method}) for method in method_names()),
        ("search", {"engine": "modular", "cutout": 0}),
        ("search", {"space": "nb201", "operations": ("nor_conv_3x3", "skip_connect")}),
        ("search", {"partial_channels": 2, "channels": 2, "edge_normalisation": True, "sampling": "gdas"}),
        ("search", {"space": "bionas-hl-pc", "operations": ("hebbian_conv_3x3", "predictive_conv_3x3")}),
        ("search", {"rules": ("fa", "frsf"), "operations": ("sep_conv_3x3", "max_pool_3x3"), "fixed": {"stem": "dfa"}}),
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


@pytest.fixture
def stopped(tmp_path):
    """A search that was stopped in its second epoch, and the folder of it."""
    loop = make("search")
    with RunFolder.create(tmp_path / "stopped") as folder:
        loop.write_beginning(folder)
        advance(loop, 4)
        folder.write_metrics(loop.metrics)
        loop.write_results(folder)
        folder.write_checkpoint(loop.state_dict(), best=True)
        advance(loop, 2)
        folder.write_checkpoint(loop.state_dict())
    return folder.path


def refuse(folder: Path, message: str, **settings) -> None:
    """Resuming raises, and changes no file."""
    before = contents(folder)
    config = SearchConfig(**{**SETTINGS["search"], **settings}) if settings else None
    with pytest.raises(InputError, match=message) as raised:
        bf.search(config, resume=folder)
    assert "\n" not in str(raised.value)
    assert contents(folder) == before


class TestResuming:
    def test_from_python(self, stopped, whole, tmp_path):
        torch.manual_seed(1)
        result = bf.search(resume=stopped)
        expect_same(stopped, whole["search"][0])
        assert result.run_dir == stopped
        assert result.genotype == bf.Genotype.load(whole["search"][0] / "genotype.json")
        config = bf.TrainConfig(**SETTINGS["train"])
        assert plain(bf.train(GENOTYPE, config).metrics) == plain(RunFolder(whole["train"][0]).read_metrics())

    def test_other_data_under_the_same_name_are_refused(self, stopped, monkeypatch):
        data = killing.specks(None, download=False, seed=0)
        labels = data.labels.clone()
        labels[0] = 1 - labels[0]
        other = dataclasses.replace(data, labels=labels)
        monkeypatch.setitem(registry._registry._items, killing.DATASET, lambda *_, **__: other)
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
        assert (tmp_path / "run" / "report.html").read_text() == killing.REPORT

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


class TestLocked:
    def test_a_second_process_is_refused(self, stopped, runner, begin):
        with RunFolder.open(stopped).hold():
            before = contents(stopped)
            end = runner("search", "--resume", stopped)
            assert end.code == 2
            assert f"{stopped} is in use by process {os.getpid()} on " in end.stderr
            assert runner(*begin["search"], "--out", stopped).code == 2
            assert contents(stopped) == before
        bf.search(resume=stopped)

    def test_a_folder_in_use_is_refused_although_empty(self, tmp_path):
        with RunFolder.create(tmp_path / "run"), pytest.raises(InputError, match="in use by process"):
            bf.search(SearchConfig(**SETTINGS["search"]), out=tmp_path / "run")
        assert not list((tmp_path / "run").iterdir())

    def test_training_too(self, whole, runner):
        with RunFolder.open(whole["train"][0]).hold():
            assert "in use" in runner("train", "--resume", whole["train"][0]).stderr


class TestWriting:
    """Whatever cannot be written: one line, exit code 2, and the run goes on from where it was saved."""

    def test_disk_full(self, stopped, whole, monkeypatch):
        before, fsync, written = contents(stopped), os.fsync, []

        def full(file):
            written.append(file)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
                bf.search(resume=stopped)
        after = contents(stopped)
        assert set(after) == set(before)
        assert {name for name in after if after[name] != before[name]} == {"checkpoint.pt"}
        bf.search(resume=stopped)
        expect_same(stopped, whole["search"][0])

    def test_files_of_limited_size(self, stopped, whole, runner):
        before = contents(stopped)
        end = runner("search", "--resume", stopped, file_limit=20_000)
        assert end.code == 2
        (line,) = (line for line in end.stderr.splitlines() if "error" in line)
        assert "checkpoint.pt: File too large" in line
        assert contents(stopped) == before
        bf.search(resume=stopped)
        expect_same(stopped, whole["search"][0])

    def test_a_folder_that_cannot_be_written(self, stopped, runner):
        with tempfile.TemporaryDirectory() as parent:
            run = Path(parent) / "run"
            shutil.copytree(stopped, run)
            for folder in (run, Path(parent)):
                folder.chmod(0o555)
            for words in (["--resume", run], ["--dataset", killing.DATASET, "--out", Path(parent) / "new"]):
                end = runner("search", *words, ordinary=True)
                assert (end.code, end.stderr.count("\n")) == (2, 1), end.stderr
                assert "cannot write to" in end.stderr
            assert contents(run) == contents(stopped)
            for folder in (Path(parent), run):
                folder.chmod(0o755)

    def test_a_folder_that_cannot_be_read(self, stopped, runner):
        stopped.parent.chmod(0)
        try:
            end = runner("search", "--resume", stopped, ordinary=True)
        finally:
            stopped.parent.chmod(0o700)
        assert (end.code, end.stderr) == (2, f"error: no run folder {stopped}\n")


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    """One bit of a weight: torch.load would not notice."""
    weight = torch.load(io.BytesIO(data), weights_only=True)["net"]["classifier.weight"]
    at = data.index(weight.numpy().tobytes())
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class TestDamaged:
    @pytest.mark.parametrize("damage", [_truncated, _flipped, lambda data: b"", lambda data: b"hello"])
    def test_bytes(self, damage, stopped, whole):
        checkpoint = stopped / "checkpoint.pt"
        checkpoint.write_bytes(damage(checkpoint.read_bytes()))
        refuse(stopped, r"checkpoint\.pt is damaged or no checkpoint.*nothing .* was changed\. best\.pt, of the end of")
        (stopped / "best.pt").write_bytes(b"")
        refuse(stopped, r"checkpoint\.pt is damaged.*nothing in .* was changed$")

    def test_a_foreign_one(self, stopped):
        torch.save({"weights": torch.zeros(3)}, stopped / "checkpoint.pt")
        refuse(stopped, r"checkpoint\.pt is no checkpoint of a run")
        torch.save(torch.zeros(3), stopped / "checkpoint.pt")
        refuse(stopped, r"checkpoint\.pt is no checkpoint of a run")

    def test_one_of_a_newer_version(self, stopped):
        state = checkpoint.unpack(stopped / "checkpoint.pt")
        torch.save({**state, "format": 2}, stopped / "checkpoint.pt")
        refuse(stopped, "has format 2, and this version of bionas-fast reads 1: a newer version of bionas-fast wrote")

    def test_one_of_another_run(self, stopped, whole):
        shutil.copy(whole["train"][0] / "checkpoint.pt", stopped / "checkpoint.pt")
        refuse(stopped, "holds a run of kind 'train', not 'search'")
        other = make("search", epochs=2)
        (stopped / "checkpoint.pt").write_bytes(checkpoint.pack(other.state_dict()))
        refuse(stopped, "epochs: the checkpoint has 2, not 3")

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("net", "classifier.weight"), torch.zeros(3), r"net\.classifier\.weight: expected float32 \[10|4, "),
            (("net", "classifier.weight"), "double", "expected float32 .* got float64"),
            (("net", "classifier.weight"), None, "expected a tensor, got NoneType"),
            (("net", "extra"), torch.zeros(3), "net: 'extra' is unexpected"),
            (("net",), {}, "is missing"),
            (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(3), r"optimizer\.0\.momentum_buffer: expected"),
            (("optimizer", "state", 999), {}, "optimizer: 999 is none of"),
            (("strategy", "optimizer", "state", 1, "exp_avg"), "double", r"strategy\.optimizer\.1\.exp_avg"),
            (("strategy",), {}, "not the state of a run: KeyError"),
            (("batches",), [], "not the state of a run: ValueError"),
            (("batches", 0, "position"), 99, "batch stream was saved at batch 99 of 4"),
            (("valid", "permutation"), torch.zeros(32), "permutation is damaged"),
            (("random", "cpu"), torch.zeros(3, dtype=torch.uint8), "not the state of a run"),
            (("epoch",), 4, "epoch: 4 is out of range"),
            (("epoch",), "1", "epoch: expected int, got str"),
            (("tally", "steps"), 9, "tally: 9 steps"),
            (("metrics",), [], "metrics: expected 1 rows"),
            (("metrics", 0, "valid_accuracy"), "good", "metrics: row 1 is damaged"),
            (("alphas", "normal"), [], r"alphas\.normal: expected a list of 2"),
            (("config",), None, "holds no settings"),
            (("config", "epochs"), "many", "epochs: input should be"),
        ],
        ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
    )
    def test_entries_that_do_not_fit(self, path, value, message, stopped):
        state = checkpoint.unpack(stopped / "checkpoint.pt")
        place = state
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = place[path[-1]].double() if value == "double" else value
        torch.save(state, stopped / "checkpoint.pt")
        refuse(stopped, message)


class TestTensorBoard:
    def read(self, folder: Path) -> dict[str, list[tuple[int, float]]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    def test_a_resumed_run_repeats_no_step(self, runner, begin, whole, tmp_path):
        pytest.importorskip("tensorboard")
        folder = tmp_path / "run"
        # Between the scalars of the first epoch and its checkpoint; so they are written twice.
        moment = 3 * (1 + 4 + 3)
        end = runner(*begin["search"], "--tensorboard", "--out", folder, kill_at_write=moment)
        assert end.code == -KILL
        assert [step for step, _ in self.read(folder)["train_loss"]] == [1]
        assert RunFolder.open(folder).read_checkpoint()["epoch"] == 0
        assert runner("search", "--resume", folder).code == 0
        rows = RunFolder.open(folder).read_metrics()
        for name, found in self.read(folder).items():
            assert [step for step, _ in found] == [1, 2, 3]
            if name != "seconds":
                assert [value for _, value in found] == pytest.approx([row[name] for row in rows], rel=1e-6)
        assert "valid_accuracy" in self.read(folder)

    def test_disk_full(self, stopped, whole, runner, monkeypatch):
        pytest.importorskip("tensorboard")
        from tensorboard.summary.writer.record_writer import RecordWriter

        def full(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        config = SearchConfig(**SETTINGS["search"], tensorboard=True)
        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "flush", full)
            patch.setattr(RecordWriter, "close", full)
            refuse(stopped, r"cannot write .*tensorboard/events.*: No space left on device", tensorboard=True)
        bf.search(config, resume=stopped)
        assert [step for step, _ in self.read(stopped)["train_loss"]] == [2, 3]

    def test_without_the_package_nothing_is_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
        config = SearchConfig(**SETTINGS["search"], tensorboard=True)
        with pytest.raises(InputError, match="tensorboard: the package is not installed"):
            bf.search(config, out=tmp_path / "run")
        assert not list(tmp_path.iterdir())


def test_the_figures_are_those_of_the_rows(whole):
    """What a checkpoint's metrics are checked for is what an epoch gives."""
    for kind, (folder, _) in whole.items():
        (row, *_) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        assert {name for name, value in row.items() if isinstance(value, float)} == {
            "train_loss", "train_accuracy", "learning_rate", "seconds", *type(make(kind)).figures
        }  # fmt: skip
