"""Metrics for TensorBoard."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.runs import tensorboard
from bionas_fast.runs.folder import RunFolder
from bionas_fast.searching import SearchConfig
from helpers.runs import SETTINGS, refuse

KILL = signal.SIGKILL.value


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
        moment = 3 * (1 + 5 + 4)
        end = runner(*begin["search"], "--tensorboard", "--out", folder, kill_at_write=moment)
        assert end.code == -KILL
        assert [step for step, _ in self.read(folder)["loss/train"]] == [1]
        assert RunFolder.open(folder).read_checkpoint()["epoch"] == 0
        assert runner("search", "--resume", folder).code == 0
        rows = RunFolder.open(folder).read_metrics()
        written = self.read(folder)
        assert {"loss/train", "loss/valid", "accuracy/train", "accuracy/valid", "run/alpha_entropy"} < {*written}
        for name in (name for name, value in rows[0].items() if isinstance(value, float)):
            found = written.pop(tensorboard.tag(name))
            assert [step for step, _ in found] == [1, 2, 3]
            if name != "seconds":
                assert [value for _, value in found] == pytest.approx([row[name] for row in rows], rel=1e-6)
        assert not written

    def test_disk_full(self, stopped, whole, runner, monkeypatch):
        pytest.importorskip("tensorboard")
        from tensorboard.summary.writer.record_writer import RecordWriter

        def full(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        config = SearchConfig(**SETTINGS["search"], tensorboard=True)
        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "flush", full)
            patch.setattr(RecordWriter, "close", full)
            refuse(stopped, r"cannot write .*tensorboard: No space left on device", tensorboard=True)
        bf.search(config, resume=stopped)
        assert [step for step, _ in self.read(stopped)["loss/train"]] == [2, 3]

    def test_distributions_settings_and_pictures(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        settings = {**SETTINGS["search"], "epochs": 1}
        result = bf.search(SearchConfig(**settings, tensorboard=True), out=tmp_path / "run")
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        for kind, alpha in result.alphas.items():
            (histogram,) = events.Histograms(f"alpha/{kind}")
            assert histogram.histogram_value.num == alpha[-1].size
            assert histogram.histogram_value.sum == pytest.approx(len(alpha[-1]))  # every edge's shares sum to 1
        assert any(name.startswith("weights/") for name in events.Tags()["histograms"])
        (image,) = events.Images("cells")
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert "_hparams_/experiment" in events.summary_metadata
        (start,) = [own for name, own in events.summary_metadata.items() if name == "_hparams_/session_start_info"]
        assert b"alpha_learning_rate" in start.plugin_data.content

    def test_without_the_package_nothing_is_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
        config = SearchConfig(**SETTINGS["search"], tensorboard=True)
        with pytest.raises(InputError, match="tensorboard: the package is not installed"):
            bf.search(config, out=tmp_path / "run")
        assert not list(tmp_path.iterdir())
