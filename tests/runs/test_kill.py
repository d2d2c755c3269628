"""Runs that are killed or interrupted end as they would have ended: bit-identical."""

from __future__ import annotations

import random
import shutil
import signal

import pytest

from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.signals import Interrupts
from helpers.runs import expect_same, finish

KILL = signal.SIGKILL.value
INTERRUPT = signal.SIGINT.value
TERMINATE = signal.SIGTERM.value
HANG_UP = signal.SIGHUP.value


class TestKilled:
    """By SIGKILL, at moments spread over the whole run."""

    @pytest.mark.parametrize(("kind", "count"), [("search", 6), ("train", 3), ("softhebb", 2)])
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

    @pytest.mark.parametrize(("kind", "count"), [("search", 6), ("train", 3)])
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
    @pytest.mark.parametrize("number", [INTERRUPT, TERMINATE, HANG_UP], ids=["SIGINT", "SIGTERM", "SIGHUP"])
    def test_saves_and_says_how_to_resume(self, number, runner, begin, whole, tmp_path):
        folder = tmp_path / "a run"
        end = runner(*begin["search"], "--checkpoint-every", 1e6, "--out", folder, signal_at_step=(7, number))
        assert end.code == 130
        assert end.stdout == ""
        said = end.stderr.strip().splitlines()
        assert said[-2] == "finishing this step, then saving; interrupt once more to stop without saving"
        assert said[-1] == f"interrupted; resume with: bionas-fast search --resume '{folder}'"
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
            assert interrupts.requested
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
                assert not interrupts.requested
        finally:
            signal.signal(signal.SIGINT, before)
