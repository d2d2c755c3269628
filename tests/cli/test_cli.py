"""The command line from the outside: stdout, stderr, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

import bionas_fast as bf
from bionas_fast import presets
from bionas_fast.searching import SearchConfig
from helpers.forking import End

SEARCH = ["search", "--rules", "usf,brsf", "--ops", "dil_conv_3x3", "--channels", "1", "--batch-size", "512"]


@pytest.fixture(scope="module")
def run(forked):
    return forked


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folder of a search by a process that begins with it, and the end of that process."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    command = [sys.executable, "-m", "bionas_fast", *SEARCH, "--epochs", "1", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return folder, End(done.returncode, done.stdout, done.stderr, 0)


def test_search(found):
    folder, done = found
    assert done.code == 0, done.stderr
    genotype = bf.Genotype.load(folder / "genotype.json")
    for word in (genotype.hash, "normal cell", "reduce cell", "validation accuracy", str(folder)):
        assert word in done.stdout
    for edge in genotype.normal.edges:
        assert edge.candidate.operation in done.stdout
    assert "epoch   1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "epoch   1" not in done.stdout
    assert (folder / "report.html").stat().st_size > 10_000


def test_show(run, found, tmp_path):
    folder, _ = found
    for source in (folder, folder / "genotype.json"):
        done = run("show", source, "--save", tmp_path / "cell.svg")
        assert done.code == 0
        assert bf.Genotype.load(folder / "genotype.json").hash in done.stdout
        assert "<svg" in (tmp_path / "cell.svg").read_text()
    assert run("show", folder, "--save", tmp_path / "cell.png").code == 0
    assert (tmp_path / "cell.png").read_bytes().startswith(b"\x89PNG")


def test_train_and_compare(run, found, tmp_path):
    folder, _ = found
    small = ("--epochs", 1, "--channels", 1, "--cells", 3, "--batch-size", 512)
    done = run("train", folder, *small, "--out", tmp_path / "net")
    assert done.code == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert bf.load(tmp_path / "net").genotype == bf.Genotype.load(folder / "genotype.json")
    done = run("train", folder, *small, "--rule", "fa", cwd=tmp_path)
    assert done.code == 0, done.stderr
    (written,) = (tmp_path / "runs").iterdir()
    assert bf.load(written).genotype.rules == ("fa",)
    done = run("train", folder, *small, "--compare", "genotype,dfa", "--out", tmp_path / "all")
    assert done.code == 0, done.stderr
    for name in ("genotype", "dfa"):
        assert f"\n {name} " in done.stdout
        assert bf.load(tmp_path / "all" / name / "seed-0").genotype.hash


def test_doctor(run):
    done = run("doctor")
    assert done.code == 0
    assert "feedback_conv" in done.stdout
    data = json.loads(run("doctor", "--json").stdout)
    assert {"feedback_conv", "feedback_linear"} <= {op["op"] for op in data["ops"]}
    assert all(op["backend"] in ("reference", "native", "triton") for op in data["ops"])
    assert data["machine"]["bionas-fast"] == bf.__version__


def test_presets(run):
    done = run("presets")
    assert done.code == 0
    for name in presets.names():
        assert name in done.stdout
    assert SearchConfig(**presets.get("cpu-digits", "search").settings) == SearchConfig()
    for name in presets.names("search"):
        assert presets.get(name, "search").source
        SearchConfig(**presets.get(name, "search").settings)
    for name in presets.names("train"):
        bf.TrainConfig(**presets.get(name, "train").settings)


def test_settings_from_preset_file_and_words(run, tmp_path):
    """The later wins; the configuration of a run can be used again."""
    (tmp_path / "mine.yaml").write_text("epochs: 1\nchannels: 2\nrules: [usf, brsf]\noperations: [dil_conv_3x3]\n")
    out = tmp_path / "run"
    done = run(
        "search",
        "--preset",
        "cpu-digits",
        "--config",
        tmp_path / "mine.yaml",
        "--channels",
        1,
        "--batch-size",
        512,
        "--out",
        out,
    )
    assert done.code == 0, done.stderr
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert (written["epochs"], written["channels"], written["cells"]) == (1, 1, 3)
    again = run("search", "--config", out / "config.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.stderr
    assert (out / "genotype.json").read_text() == (tmp_path / "again" / "genotype.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--dataset", "digts"], "'digits'"),
        (["search", "--dataset", "fashion-mnist", "--data-dir", "/nowhere"], "/nowhere"),
        (["search", "--preset", "cpu-digit"], "'cpu-digits'"),
        (["search", "--rules", "ufs"], "'usf'"),
        (["search", "--epochs", "few"], "--epochs"),
        (["search", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["search", "--chanels", "3"], "--channels"),
        (["serch"], "search"),
        (["show", "/nowhere"], "/nowhere"),
        (["train", "/nowhere"], "/nowhere"),
        (["export", "/nowhere", "net.h5"], "net.h5: expected a file that ends in .onnx or .pt2"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(run, arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(run, tmp_path):
    done = run("--debug", "search", "--dataset", "digts", cwd=tmp_path)
    assert done.code not in (0, 130)
    assert "Traceback" in done.stderr


def test_bad_yaml(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("epochs: [1\n")
    done = run("search", "--config", tmp_path / "bad.yaml")
    assert done.code == 2
    assert "bad.yaml, line" in done.stderr


@pytest.mark.parametrize("method", ["darts2", "eg", "random", "evolution"])
def test_every_method_from_the_command_line(run, method, tmp_path):
    words = ["search", "--method", method, "--epochs", "1", "--channels", "1", "--cells", "1", "--rules", "usf"]
    words += ["--ops", "skip_connect,max_pool_3x3", "--set", "train_fraction=0.1", "--out", tmp_path / "run"]
    words += ["--set", "checkpoint_every=7"]  # there is an option for it, too
    if method not in ("darts2",):
        words += ["--set", "population=4", "--set", "generations=1"]
    done = run(*words)
    assert done.code == 0, done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["method"], config["train_fraction"], config["checkpoint_every"]) == (method, 0.1, 7)
    assert "note: cells=1: the network has no normal cell" in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta_decay", "expected NAME=VALUE"),
        ("beta_decay=[", "is not a valid value"),
        ("plugins=[own.py]", "name a module with --plugin"),
        ("beta_decay=high", "beta_decay: input should be a valid number"),
        ("betadecay=1", "unknown setting 'betadecay'; did you mean 'beta_decay'"),
    ],
)
def test_settings_that_cannot_be_set(run, text, message, tmp_path):
    done = run("search", "--set", text, "--out", tmp_path / "run")
    assert done.code == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
