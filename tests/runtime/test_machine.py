"""What is recorded of the machine of a run."""

from __future__ import annotations

import subprocess

from bionas_fast.runtime.machine import machine


def test_the_commit_is_that_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert machine()["git commit"] == "none"
    inside = tmp_path / "project"
    git = ["git", "-C", inside, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", inside], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.chdir(inside)
    assert machine()["git commit"] == head
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert machine()["git commit"] == "none"


def test_the_host_is_named():
    assert machine()["host"]
