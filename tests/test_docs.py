"""Every Python example of the README and the guides runs, and what they name exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bionas_fast as bf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(language: str) -> list:
    found = [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL))
    ]
    assert found
    return found


@pytest.mark.parametrize("code", _blocks("python"))
def test_example_runs(code, forked, tmp_path):
    done = forked.program(code, cwd=tmp_path)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("text", _blocks("json"))
def test_example_genotype_is_read(text):
    assert bf.Genotype.from_json(text).rules


def test_commands_exist(forked):
    known = forked("--help")
    assert known.code == 0
    for page in PAGES:
        for command in re.findall(r"^bionas-fast (\w+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^\s+{command}\b", known.stdout, re.MULTILINE), command


def test_benchmarks_are_found():
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only", "--collect-only", "-q"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test_search_step.py::test_peak_memory" in done.stdout


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
