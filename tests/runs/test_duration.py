"""The time that a run has taken, which adds up over its resumes."""

from __future__ import annotations

import os
import time

import pytest

import bionas_fast as bf
from bionas_fast.config import Duration
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.summary import RunSummary


def test_a_resumed_run_adds_to_its_time(stopped):
    folder = RunFolder.open(stopped)
    before = folder.read()
    assert before.duration is None
    state = folder.read_checkpoint()
    assert state["seconds"] == {"wall_seconds": 0.0, "processor_seconds": 0.0}
    folder.write_checkpoint({**state, "seconds": {"wall_seconds": 1000.0, "processor_seconds": 2000.0}})
    wall, processor = time.monotonic(), sum(os.times()[:4])
    bf.search(resume=stopped)
    wall, processor = time.monotonic() - wall, sum(os.times()[:4]) - processor
    after = folder.read()
    assert after.duration is not None
    assert 1000.0 < after.duration.wall <= 1000.0 + wall
    assert 2000.0 < after.duration.processor <= 2000.0 + processor
    assert RunSummary.read(stopped).duration == after.duration
    assert (after.settings, after.machine, after.plugins) == (before.settings, before.machine, before.plugins)


def test_the_entry_is_replaced(stopped):
    folder, path = RunFolder.open(stopped), stopped / "config.yaml"
    text = path.read_text()
    for wall in (1.0, 2.0):
        folder.write_duration(Duration(wall, 3.0))
        assert path.read_text() == f"{text}duration:\n  wall_seconds: {wall}\n  processor_seconds: 3.0\n"
    path.write_text("duration:\n  wall_seconds: 7.0\n  processor_seconds: 8.0\n" + text)
    assert folder.read().duration == Duration(7.0, 8.0)
    folder.write_duration(Duration(9.0, 9.0))
    assert path.read_text() == f"{text}duration:\n  wall_seconds: 9.0\n  processor_seconds: 9.0\n"


@pytest.mark.parametrize("entry", ["", "7", "[1]", "{wall_seconds: 1}", "{wall_seconds: x, processor_seconds: 1}"])
def test_a_damaged_entry(stopped, entry):
    """It counts as none: time is no setting."""
    path = stopped / "config.yaml"
    path.write_text(f"{path.read_text()}duration: {entry}\n")
    assert RunFolder.open(stopped).read().duration is None
