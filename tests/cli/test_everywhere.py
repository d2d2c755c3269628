"""Options of every command, and the commands that list what there is."""

from __future__ import annotations

import json
import warnings

import pytest
import yaml

import bionas_fast as bf
from bionas_fast.cli.app import main
from bionas_fast.data import dataset_names
from bionas_fast.runs.kinds import get_kind, kind_names
from helpers.genotypes import GENOTYPE


@pytest.fixture
def run(capfd):
    """Run a command in this process; return its code and what it printed."""

    def call(*words):
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            main([str(word) for word in words])
        return end.value.code, *capfd.readouterr()

    return call


TRAIN = ("train", "resnet20", "--epochs", "1", "--batch-size", "700")


def test_version(run):
    assert run("--version") == (0, f"bionas-fast {bf.__version__}\n", "")


@pytest.mark.parametrize("words", [["-h"], ["search", "-h"], ["runs", "-h"]], ids=" ".join)
def test_help_is_short_too(run, words):
    assert run(*words) == run(*words[:-1], "--help")


def test_quiet(run, tmp_path):
    code, printed, said = run("-q", *TRAIN, "--out", tmp_path / "run")
    assert (code, said) == (0, "")
    assert "test accuracy" in printed
    code, printed, said = run(*TRAIN, "--quiet", "--out", tmp_path / "run")
    assert code == 2
    assert said.startswith("error: ")


def test_warnings_of_plugins(run, tmp_path):
    """Shown without -v, also those at the import; -q hides them."""
    (tmp_path / "mine.py").write_text("import warnings\nwarnings.warn('look at this', UserWarning)\n")
    code, _, said = run("datasets", "--plugin", tmp_path / "mine.py")
    assert (code, said.splitlines()[0]) == (0, "UserWarning: look at this")
    (tmp_path / "quiet.py").write_text("import warnings\nwarnings.warn('look at this', UserWarning)\n")
    assert run("datasets", "-q", "--plugin", tmp_path / "quiet.py")[2] == ""


def test_warnings_of_others(run, monkeypatch):
    def warn(*_):
        warnings.warn("of another package", UserWarning, stacklevel=1)
        return ()

    monkeypatch.setattr("bionas_fast.data.dataset_names", warn)
    assert "UserWarning: of another package\n" in run("datasets", "-v")[2]
    assert "UserWarning" not in run("datasets")[2]


def test_log_file(run, tmp_path):
    log = tmp_path / "log"
    for name in ("a", "b"):
        assert run(*TRAIN, "--out", tmp_path / name, "--log-file", log)[0] == 0
    assert run(*TRAIN, "--out", tmp_path / "b", "--log-file", log)[0] == 2
    lines = [line.split("  ", 1)[1] for line in log.read_text().splitlines()]
    assert lines.count("training resnet20 bp: 2 steps") == 2
    assert f"run folder  {tmp_path / 'b'}" in lines
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("epoch   1   train ") for line in lines) == 2
    missing = tmp_path / "no folder" / "log"
    assert (
        run("runs", "--log-file", missing)[2]
        == f"error: --log-file: cannot write to {missing}: No such file or directory\n"
    )
    assert run("runs", "--log-file")[2] == "error: --log-file: expected a file\n"


def test_datasets(run):
    _, printed, _ = run("datasets", "--json")
    rows = {row["dataset"]: row for row in json.loads(printed)}
    assert [name.removesuffix("…") for name in rows] == list(dataset_names())
    assert rows["cifar10"] == {
        "dataset": "cifar10",
        "training": 50_000,
        "test": 10_000,
        "image": "3×32×32",
        "classes": 10,
        "description": rows["cifar10"]["description"],
    }
    assert all(row["description"] for row in rows.values())
    printed = run("datasets")[1]
    assert all(f"\n{name}\n" in f"\n{printed}" for name in rows)


def test_a_dataset(run, tmp_path):
    code, printed, _ = run("datasets", "digits", "--json")
    assert json.loads(printed) == {
        "dataset": "digits",
        "training images": 1438,
        "test images": 359,
        "image": "1×8×8",
        "classes": 10,
    }
    code, _, said = run("datasets", "mnist", "--data-dir", tmp_path)
    assert code == 2
    assert str(tmp_path) in said
    assert "--download" in said


def test_the_folder_of_the_cache(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert f"{tmp_path}/bionas-fast/MNIST" in run("datasets", "mnist")[2]


def test_settings(run):
    found = json.loads(run("settings", "--json")[1])
    assert list(found) == list(kind_names())
    for kind, settings in found.items():
        assert [setting["name"] for setting in settings] == list(get_kind(kind).settings.model_fields)
        assert all(setting["meaning"] and setting["values"] for setting in settings)
    by_name = {setting["name"]: setting for setting in found["train"]}
    assert by_name["label_smoothing"] == {
        "name": "label_smoothing",
        "default": "0.0",
        "values": "number, ≥ 0, < 1",
        "option": "",
        "meaning": "Fraction of each label spread over all classes.",
    }
    assert by_name["amp"]["values"] == "off | bf16 | fp16"
    assert by_name["data_dir"]["values"] == "text | null"
    assert by_name["color_jitter"]["values"] == "list of number"
    printed = run("settings", "softhebb")[1]
    assert "softhebb: bionas-fast train" in printed
    assert "\nepochs = 50\n" in printed
    code, _, said = run("settings", "serach")
    assert code == 2
    assert said.startswith("error: unknown kind of run 'serach'")


def test_a_dry_run(run, tmp_path):
    genotype = tmp_path / "genotype.json"
    genotype.write_text(GENOTYPE.to_json())
    code, printed, _ = run("train", genotype, "--epochs", "3", "--channels", "1", "--cells", "1", "--dry-run")
    assert code == 0
    settings, costs = printed.split("\n\n")
    assert bf.TrainConfig(**yaml.safe_load(settings)) == bf.TrainConfig(epochs=3, channels=1, cells=1)
    assert ["steps", str(3 * (1438 // 64))] in [line.split() for line in costs.splitlines()]
    for words in (("search", "--channels", "1", "--cells", "1", "--ops", "skip_connect"), ("train", "softhebb")):
        code, printed, _ = run(*words, "--epochs", "2", "--dry-run", "--out", tmp_path / "none")
        assert code == 0
        assert "epochs: 2\n" in printed
        assert "memory  " in printed
    assert not (tmp_path / "none").exists()
    code, _, said = run("train", "resnet20", "--seeds", "2", "--dry-run")
    assert (code, said) == (
        2,
        "error: --dry-run: of one run; omit --seeds and --compare, whose runs cost as much each\n",
    )


def test_results_as_json(run, tmp_path):
    small = ("--channels", "1", "--cells", "1", "--epochs", "1", "--batch-size", "512", "--json")
    _, printed, _ = run("search", "--ops", "skip_connect,max_pool_3x3", "--out", tmp_path / "a", *small)
    found = json.loads(printed)
    assert bf.Genotype.from_json(json.dumps(found["genotype"])) == bf.Genotype.load(tmp_path / "a" / "genotype.json")
    assert found["run"] == str(tmp_path / "a")
    assert 0 <= found["valid_accuracy"] <= 100
    _, printed, _ = run("train", tmp_path / "a", "--out", tmp_path / "b", *small)
    row = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads(printed)
    assert {name: found[name] for name in row} == row
    assert found["parameters"] == sum(found["weights by rule"].values())
    _, printed, _ = run("train", tmp_path / "a", "--seeds", "1", "--out", tmp_path / "c", *small)
    (variant,) = json.loads(printed)["variants"]
    assert list(variant["accuracies"]) == ["0"]


def test_lists_and_files_as_json(run, tmp_path):
    words = ("train", "resnet20", "--epochs", "1", "--batch-size", "700", "--out", tmp_path / "run", "--json")
    trained = json.loads(run(*words)[1])
    shown = json.loads(run("show", tmp_path / "run", "--json")[1])
    assert (shown["genotype"], shown["parameters"]) == (None, trained["parameters"])
    analysed = json.loads(run("analyze", tmp_path / "run", "--out", tmp_path / "analysis", "--json")[1])
    assert analysed["networks"][0]["network"] == "run"
    assert (tmp_path / "analysis" / "layers.csv").is_file()
    written = json.loads(run("report", tmp_path / "run", "--json")[1])
    assert written == {"report": str(tmp_path / "run" / "report.html")}
    exported = json.loads(run("export", tmp_path / "run", tmp_path / "net.pt2", "--json")[1])
    assert exported["num_classes"] == 10
    assert exported["test_accuracy"] == trained["test_accuracy"]
    presets = {row["preset"]: row for row in json.loads(run("presets", "--json")[1])}
    assert presets["desk-train"]["steps"] == 5 * (5_000 // 64)
    assert presets["desk-train"]["settings"]["evaluate_every"] == 5


def test_options_count_before_set(run):
    """An option that was typed counts more than --set, and an empty value is null."""
    words = ("search", "--epochs", "7", "--set", "epochs=5", "--set", "valid_batch_size=", "--dry-run")
    _, printed, _ = run(*words, "--channels", "1", "--cells", "1", "--ops", "skip_connect")
    settings = yaml.safe_load(printed.split("\n\n")[0])
    assert (settings["epochs"], settings["valid_batch_size"]) == (7, None)
