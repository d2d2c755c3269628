"""The public names, which are imported on first use, and what a light import and ``--help`` leave out."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bionas_fast as bf
from helpers import registries

ROOT = Path(bf.__file__).parent
PACKAGES = [
    "bionas_fast",
    *(
        f"bionas_fast.{path.parent.name}"
        for path in sorted(ROOT.glob("*/__init__.py"))
        if "on_first_use" in path.read_text()
    ),
]
#: Packages that take long to import, and that ``--help`` has no need of.
HEAVY = {"torch", "numpy", "matplotlib", "sklearn", "torchvision", "triton", "scipy", "PIL", "cma", "tensorboard"}


def _imported_for_type_checkers(package) -> dict[str, str]:
    """The names under ``if TYPE_CHECKING`` of a package, with the modules that they are imported from."""
    (block,) = (
        node
        for node in ast.parse(Path(package.__file__).read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {alias.name: node.module for node in block.body for alias in node.names}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_resolves(name):
    """What users import, type checkers see, ``dir`` lists and ``__all__`` holds is the same."""
    package = importlib.import_module(name)
    declared = _imported_for_type_checkers(package)
    for public, module in declared.items():
        home = importlib.import_module(module)
        expected = getattr(home, public, None) or importlib.import_module(f"{module}.{public}")
        assert getattr(package, public) is expected
    eager = {"BionasWarning", "InputError", "Interrupted"} if package is bf else set()
    assert {*declared, *eager} == {*package.__all__} <= {*dir(package)}


@pytest.mark.parametrize(
    "name", ["bionas_fast", *(f"bionas_fast.{path.parent.name}" for path in ROOT.glob("*/__init__.py"))]
)
def test_no_function_shadows_a_module(name):
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    public = {*getattr(package, "__all__", ()), *vars(package)}
    assert not {own for own in modules & public if getattr(package, own) is not sys.modules.get(f"{name}.{own}")}


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'bionas_fast' has no attribute 'serch'"):
        _ = bf.serch
    with pytest.raises(ImportError):
        from bionas_fast.searching import serch  # noqa: F401


@pytest.mark.parametrize("registry", registries.REGISTRIES, ids=lambda registry: registry.kind)
def test_names_that_are_known_before_their_modules(registry):
    """The modules register what is declared, and nothing else."""
    registries.load()
    homes = {name: registry._owner(item).__module__ for name, item in registry._items.items()}
    own = {name: home for name, home in homes.items() if home.startswith("bionas_fast.") and registry.kind != "rule"}
    assert own == registry._builtin


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def _imports(*words: str, **environment: str) -> set[str]:
    """The packages that a program imports, by ``-X importtime``."""
    done = _run("-X", "importtime", *words, **environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 50, done.stderr
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


COMPLETION = {"_BIONAS_FAST_COMPLETE": "complete_bash", "COMP_WORDS": "bionas-fast search --da", "COMP_CWORD": "2"}


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["-c", "import bionas_fast"], {}),
        (["-c", "import bionas_fast as bf; bf.SearchConfig, bf.TrainConfig, bf.rules.names()"], {}),
        (["-m", "bionas_fast", "--help"], {}),
        (["-m", "bionas_fast", "--version"], {}),
        (["-m", "bionas_fast", "search", "--help"], {}),
        (["-m", "bionas_fast", "attack", "--help"], {}),
        (["-m", "bionas_fast", "settings", "search"], {}),
        (["-m", "bionas_fast"], COMPLETION),
    ],
    ids=["import", "settings", "help", "version", "help of search", "help of attack", "list of settings", "completion"],
)
def test_what_needs_no_torch_does_not_import_it(words, environment):
    assert not _imports(*words, **environment) & HEAVY


def test_completion():
    done = _run("-m", "bionas_fast", **COMPLETION)
    assert {"--dataset", "--data-dir"} <= {*done.stdout.split()}, done.stderr


def test_time_of_the_help():
    """In processor time, as a share of that of importing torch: 0.15 where this was written."""

    def used(*words: str) -> float:
        before = os.times()
        assert _run(*words).returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    torch = min(used("-c", "import torch") for _ in range(2))
    assert min(used("-m", "bionas_fast", "--help") for _ in range(3)) < 0.3 * torch
    assert min(used("-c", "import bionas_fast") for _ in range(3)) < 0.1 * torch


@pytest.mark.parametrize("moment", ["torch", "torch.optim"])
def test_an_interrupt_during_the_import_of_torch(tmp_path, moment):
    """Ctrl-C while a module is imported: at once, one line, code 130, nothing written."""
    # A module of that name, found first, says that its import has begun, and takes its time.
    package = tmp_path / "torch"
    package.mkdir()
    slow = "import sys, time\nprint('importing', flush=True)\nfor _ in range(600): time.sleep(0.1)\n"
    (package / "__init__.py").write_text(slow if moment == "torch" else "from torch import optim\n")
    (package / "optim.py").write_text(slow)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "bionas_fast", "search", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert time.monotonic() - sent < 5
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["neither", "count", "policy"],
)
def test_threads_of_the_command_do_not_spin_for_long(given, expected, monkeypatch):
    from bionas_fast import __main__
    from bionas_fast.cli import app

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "main", lambda: None)
    before = signal.getsignal(signal.SIGINT)
    try:
        __main__.main()
        assert os.environ.get("GOMP_SPINCOUNT") == expected
    finally:
        signal.signal(signal.SIGINT, before)
        if "GOMP_SPINCOUNT" not in given:
            os.environ.pop("GOMP_SPINCOUNT", None)
