"""Tables and figures from small runs. Oracles: the files of the runs, NumPy and SciPy."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import bionas_fast as bf
from bionas_fast.cli.app import main
from bionas_fast.reproduce import Plan, Scale, experiments, get_experiment, plan, runner

#: One cell, one channel, 60 images.
SIZES = "--dataset small:digits,images=60 --epochs 1 --batch-size 16 --channels 1 --cells"
RUNS = {
    "search-bionas": f"search {SIZES} 2 --rules usf --ops skip_connect,dil_conv_3x3",
    "bionas": f"train {{search-bionas}} {SIZES} 2 --set record_layers=1",
    "bionas-usf": f"train {{search-bionas}} {SIZES} 2 --rule usf --everywhere --set record_layers=1",
    "broken": f"train {{search-bionas}} {SIZES} 2 --dataset npz:missing.npz",
    "needs-broken": "train {broken}",
}
ATTACKS = {
    "networks": ["bionas", "bionas-usf"],
    "source": "bionas-usf",
    "options": "--images 40",
}


@pytest.fixture(scope="module")
def small(forked):
    """A scale of five small runs, of which one fails, and the tables that need them; its commands are forked."""

    class Popen:
        def __init__(self, command, *, stdout, **_):
            assert command[:3] == [sys.executable, "-m", "bionas_fast"]
            end = forked(*command[3:])
            stdout.write(f"{end.stdout}{end.stderr}".encode())
            self.returncode = end.code

        def poll(self):
            return self.returncode

    with pytest.MonkeyPatch.context() as patch:
        whole = plan.read_table

        def read(file):
            if file == "desk.yaml":
                return {"seeds": 2, "runs": RUNS, "attack": ATTACKS}
            tables = whole(file)
            tables["figure3"]["networks"] = {"mixed": "bionas", "usf": "bionas-usf"}
            tables["figure4"]["networks"] = {"mixed": "bionas"}
            attacks = tables["table4"]["attacks"]
            tables["table4"]["attacks"] = {row: attacks[row] for row in ("Clean", "FGSM", "Square")}
            tables["table2"]["columns"]["ImageNet"] = {"one": [1.0, "broken"], "two": [2.0, "needs-broken"]}
            return tables

        names = {"Popen": Popen, "DEVNULL": subprocess.DEVNULL, "STDOUT": subprocess.STDOUT}
        patch.setattr(runner, "subprocess", SimpleNamespace(**names))
        patch.setattr(plan, "read_table", read)
        patch.setattr(experiments, "read_table", read)
        yield


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", *map(str, words)])
    return stop.value.code


@pytest.fixture(scope="module")
def reproduced(small, tmp_path_factory):
    """The folder after two commands."""
    out = tmp_path_factory.mktemp("reproduced") / "runs"
    assert command("table5", "figure3", "figure4", "--out", out, "--jobs", 2) == 0
    return out


def accuracies(out, run):
    rows = [(out / run / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()[-1] for seed in (0, 1)]
    return np.array([json.loads(row)["test_accuracy"] for row in rows])


def rows_of(page):
    """The last table of a page in Markdown."""
    lines = [line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def shown(values, form="{:.2f} ± {:.2f}"):
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return form.format(np.mean(values), half)


def test_table_of_accuracies(reproduced):
    page = (reproduced / "table5.md").read_text()
    mixed, usf = rows_of(page)
    assert (mixed["row"], usf["row"]) == ("BioNAS-DARTS", "usf on every layer")
    assert (mixed["published, CIFAR-10"], usf["published, CIFAR-10"]) == ("94.86", "–")
    assert mixed["test accuracy %"] == shown(accuracies(reproduced, "bionas"))
    difference = shown(accuracies(reproduced, "bionas-usf") - accuracies(reproduced, "bionas"), "{:+.2f} ± {:.2f}")
    assert usf["minus BioNAS-DARTS"] == difference
    assert usf["bp %"] == "0.0"
    assert "Dataset small:digits,images=60, seeds 0 to 1." in page
    assert "Not computed at this scale: BioNAS-DARTS1, shuffled" in page
    assert "`bionas-fast reproduce table5 --scale desk --seeds 2`" in page


def test_errors_are_what_accuracies_leave(reproduced):
    (row,) = rows_of(get_experiment("table1").parts(Plan(Scale.read("desk"), reproduced, 2))[0].to_markdown())
    assert row["test error %"] == shown(100 - accuracies(reproduced, "bionas"))
    assert row["published, CIFAR-10"] == "4.84"


def geometric(values):
    low, high = np.exp(stats.t.interval(0.95, len(values) - 1, np.mean(np.log(values)), stats.sem(np.log(values))))
    return f"{stats.gmean(values):.3g} [{low:.2g}, {high:.2g}]"


def test_figure_of_gradients(reproduced):
    mixed, usf = rows_of((reproduced / "figure3.md").read_text())
    variances_of = []
    for row, run in ((mixed, "bionas"), (usf, "bionas-usf")):
        means = []
        for seed in (0, 1):
            lines = (reproduced / run / f"seed-{seed}" / "layers.jsonl").read_text().splitlines()
            layers = [json.loads(line) for line in lines]
            assert {layer["epoch"] for layer in layers} == {0, 1}
            trained = [layer for layer in layers if layer["epoch"] == 1]
            variances = [layer["variance"] for layer in trained if layer["variance"]]
            cosines = [layer["cosine"] for layer in trained if layer["cosine"] is not None]
            means.append((stats.gmean(variances), np.mean(cosines)))
        variance, cosine = zip(*means, strict=True)
        variances_of.append(np.array(variance))
        assert row["variance"] == geometric(variance)
        assert row["cosine to the true gradient"] == shown(cosine, "{:.3g} ± {:.2g}")
    assert mixed["variance, ratio"] == "–"
    assert usf["variance, ratio"] == geometric(variances_of[1] / variances_of[0])
    for name in ("gradients", "alignment"):
        assert "usf" in (reproduced / f"figure3-{name}.svg").read_text()


def test_figure_of_weights(reproduced):
    (row,) = rows_of((reproduced / "figure4.md").read_text())
    kurtosis, near = [], []
    for seed in (0, 1):
        network = bf.load(reproduced / "bionas" / f"seed-{seed}")
        weights = [p.detach().double().numpy().ravel() for p in network.parameters() if p.ndim > 1]
        whole = np.concatenate(weights)
        kurtosis.append(stats.kurtosis(whole))
        near.append(100 * np.mean(np.abs(whole) < 0.01))
    assert row["excess kurtosis"] == shown(kurtosis, "{:.3g} ± {:.2g}")
    assert row["within ±0.01, %"] == shown(near, "{:.3g} ± {:.2g}")
    assert (reproduced / "figure4-weights.svg").is_file()


def test_what_is_done_is_not_repeated(reproduced, monkeypatch, capsys):
    monkeypatch.setattr(runner, "subprocess", None)
    before = (reproduced / "table5.md").read_bytes()
    assert command("table5", "--out", reproduced) == 0
    assert (reproduced / "table5.md").read_bytes() == before
    assert "BioNAS-DARTS" in capsys.readouterr().out


def test_table_of_attacks(reproduced, capsys):
    assert command("table4", "--out", reproduced, "--jobs", 2) == 0
    page = (reproduced / "table4.md").read_text()
    rows = rows_of(page[page.index(", here") :])
    found = [list(csv.DictReader(io.StringIO(text))) for text in csvs(reproduced)]
    assert [(row["attack"], row["gradient"]) for row in rows] == [
        ("Clean", "–"),
        *(("FGSM", gradient) for gradient in ("feedback", "true", "blindness")),
        ("Square", "–"),
    ]

    def values(attack, gradient, network):
        return np.array(
            [
                next(
                    float(row["accuracy"])
                    for row in seed
                    if (row["attack"], row["gradient"], row["network"]) == (attack, gradient, network)
                )
                for seed in found
            ]
        )

    for network in ("bionas", "bionas-usf"):
        feedback, true = (values("fgsm", gradient, network) for gradient in ("feedback", "true"))
        assert rows[1][network] == shown(feedback)
        assert rows[3][network] == shown(feedback - true)
        assert rows[4][network] == shown(values("square-300", "", network))
    assert "Robust accuracy of the first 40 test images, ε 8/255" in page


def csvs(out):
    return [(out / "attack" / f"seed-{seed}" / "table.csv").read_text() for seed in (0, 1)]


def test_a_failed_run_is_named_and_what_needs_it_is_left_out(reproduced, capsys):
    assert command("table2", "--out", reproduced, "--seeds", 1) == 2
    message = capsys.readouterr().err
    assert re.search(r"broken, seed 0: error: .*missing\.npz", message)
    assert re.search(r"needs-broken, seed 0: needs \S+broken/seed-0", message)
    assert f"what they printed is in {reproduced / 'logs'}" in message
    assert "missing.npz" in (reproduced / "logs" / "broken-seed-0.log").read_text()


def test_dry_run_writes_nothing(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bionas_fast.reproduce.estimate_costs", lambda *_, **__: [])
    assert command("figure3", "--dry-run") == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("bionas-fast ")]
    assert len(lines) == 6 and lines[0].endswith("--seed 0 --out runs/desk/search-bionas/seed-0")
    assert "6 with 2 seeds, of which 0 are done" in printed
    assert not list(tmp_path.iterdir())


#: As a shell starts it in the background, with SIGINT ignored.
SLEEPER = """\
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from pathlib import Path
from bionas_fast.reproduce import Step, run_steps
out = Path(sys.argv[1])
words = ("train", "resnet20", "--dataset", "small:digits,images=60", "--epochs", "1000", "--batch-size", "4")
try:
    run_steps([Step("endless", 0, words, out / "endless")], out / "logs")
except KeyboardInterrupt as stop:
    print(stop)
"""


def test_an_interrupt_lets_the_runs_save(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "endless" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "interrupted; to continue, give the same command\n"
    assert (tmp_path / "endless" / "checkpoint.pt").is_file()
    assert "resume" in (tmp_path / "logs" / "endless-seed-0.log").read_text()
    assert not runner.is_done(runner.Step("endless", 0, ("train",), tmp_path / "endless"))
