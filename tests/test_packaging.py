"""Wheels and sdists: what they hold, with the link to the kernels and where it was lost."""

from __future__ import annotations

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import yaml

import bionas_fast as bf

ROOT = Path(__file__).parents[1]
FOLDERS = ("bionas_fast", "kernels", "csrc", "benchmarks", "docs", "examples", "experiments", "tests")
REPOSITORY = "https://github.com/bionas-fast/bionas-fast"
#: The versions of Python on which the tests run.
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
LINK = Path("bionas_fast", "kernels")


def sources(folder: str, *suffixes: str) -> set[str]:
    """The files of a folder with these suffixes, but for those that are reached through the link."""
    found = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in suffixes}
    return {path.as_posix() for path in found if LINK not in path.parents}


def copy_checkout(to: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.so", ".*")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, to / name, ignore=ignored, symlinks=True)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, to)


def build(kind: str, folder: Path) -> tuple[Path, str]:
    """A package of the sources in ``folder``, and what its making wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}('made')"],
        env={**os.environ, "CXX": "/bin/false", "BIONAS_CUDA_ARCHITECTURES": "80 hopper"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "made").iterdir()
    return made, done.stderr


def check_wheel(folder: Path) -> str:
    """Build a wheel, which holds every module, kernel and C++ source once. Returns what it wrote to stderr."""
    wheel, messages = build("wheel", folder)
    names = Counter(zipfile.ZipFile(wheel).namelist())
    shipped = {name for name in names if ".dist-info/" not in name}
    inside = sources("kernels", ".py") | sources("csrc", ".cpp", ".h", ".inc", ".cu", ".cuh")
    outside = sources("bionas_fast", ".py", ".yaml", ".typed")
    assert shipped == outside | {f"bionas_fast/{name}" for name in inside}
    assert set(names.values()) == {1}
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    check_metadata(email.message_from_bytes(zipfile.ZipFile(wheel).read(metadata)))
    return messages


def check_metadata(metadata: email.message.Message) -> None:
    """Check the version, the versions of Python and the addresses of a package."""
    assert metadata["Version"] == bf.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Author"]
    addresses = [entry.partition(", ")[2] for entry in metadata.get_all("Project-URL")]
    assert REPOSITORY in addresses
    assert all(address.startswith((REPOSITORY, "https://arxiv.org/")) for address in addresses)
    assert {"attacks", "docs", "examples", "onnx", "tensorboard", "test", "dev", "wandb"} == set(
        metadata.get_all("Provides-Extra")
    )
    assert [
        name.rpartition(" ")[2] for name in metadata.get_all("Classifier") if re.search(r"Python :: 3\.\d", name)
    ] == PYTHONS


def test_a_wheel_is_made_without_a_compiler(tmp_path):
    copy_checkout(tmp_path)
    lines = [line for line in check_wheel(tmp_path).splitlines() if line.startswith("bionas-fast:")]
    reasons = [line.removeprefix("bionas-fast: ").replace(" kernels not compiled ahead of time", "") for line in lines]
    assert reasons == [
        "CPU: /bin/false failed: exit status 1",
        "CUDA: architectures: expected some such as 80 or 90, got hopper",
    ]


@pytest.mark.parametrize("content", [None, "../kernels"], ids=["no file", "a file that names the target"])
def test_a_checkout_that_lost_the_link(tmp_path, content):
    """An archive leaves it out; git on Windows writes a file in its place."""
    copy_checkout(tmp_path)
    (tmp_path / LINK).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / LINK).write_text(content)
    check_wheel(tmp_path)


def test_an_sdist_holds_everything_once_and_makes_the_same_wheel(tmp_path):
    copy_checkout(tmp_path)
    sdist, _ = build("sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        files = Counter(member.name.partition("/")[2] for member in archive if member.isfile())
        unpacked = tmp_path / "unpacked"
        archive.extractall(unpacked, filter="data")
    wanted = {
        path
        for folder in FOLDERS
        for path in sources(folder, ".py", ".yaml", ".cpp", ".h", ".cu", ".cuh", ".md", ".svg", ".css", ".ipynb")
    }
    wanted |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "mkdocs.yml", "noxfile.py"}
    assert wanted - set(files) == set()
    assert {name for name in files if name.startswith(LINK.as_posix())} == set()
    assert set(files.values()) == {1}
    (folder,) = unpacked.iterdir()
    check_wheel(folder)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bf.__version__
    assert citation["repository-code"] == REPOSITORY


def test_workflows_run_sessions_that_there_are():
    """A session has the name of its function; the tests run on every version of Python."""
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE))
    workflows = ROOT / ".github" / "workflows"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in workflows.glob("*.yml")}
    assert set(texts) == {"docs", "tests", "wheels"}
    called = {name for text in texts.values() for name in re.findall(r"nox -s (\w+)", text)}
    assert called <= sessions
    assert {"docs", "examples", "lint", "oldest", "tests"} <= called
    jobs = yaml.safe_load(texts["tests"])["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python-version"] == PYTHONS
