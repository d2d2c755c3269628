"""Run folders that another process works in, or that cannot be written or read."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.lock import HOLDER, LOCK
from bionas_fast.searching import SearchConfig
from helpers import killing
from helpers.runs import SETTINGS, contents, expect_same


class TestLocked:
    def test_a_second_process_is_refused(self, stopped, runner, begin):
        with RunFolder.open(stopped).lock():
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
        with RunFolder.open(whole["train"][0]).lock():
            assert "in use" in runner("train", "--resume", whole["train"][0]).stderr


class TestWriting:
    """Files that cannot be written: one line, exit code 2, and the run resumes from its checkpoint."""

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
                # A new run first says which images it takes.
                *said, last = end.stderr.splitlines()
                assert (end.code, len(said)) == (2, int("--out" in words)), end.stderr
                assert last.startswith("error: cannot write to")
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


def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "run"
    child = os.fork()
    if child == 0:
        RunFolder.create(path)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (path / LOCK).exists() and (path / HOLDER).exists()
    with RunFolder.create(path):
        assert f"process {os.getpid()} on " in (path / HOLDER).read_text()
    assert not list(path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(number, tmp_path, monkeypatch):
    """Work on them is possible, after a warning."""
    import fcntl

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(bf.BionasWarning, match=r"\.lock cannot be locked: "), RunFolder.create(tmp_path / "run"):
        assert (tmp_path / "run" / HOLDER).exists()
    assert not list((tmp_path / "run").iterdir())
