"""``evaluate`` and ``runs``, and training of named networks, through the command line."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch

import bionas_fast as bf
from bionas_fast.cli.app import main
from bionas_fast.data import MemoryImages
from bionas_fast.runs.lock import HOLDER


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config = bf.ResNetConfig(rule="fa", epochs=2, batch_size=256, valid_fraction=0.2, learning_rate=0.1, seed=5)
    bf.train_resnet(config, out=folder / "net")
    return folder


def test_evaluate(trained, capsys):
    code, out, _ = run(capsys, "evaluate", trained / "net", "--json")
    assert code == 0
    found = json.loads(out)
    data, network = bf.load_dataset("digits"), bf.load(trained / "net")
    expected = bf.evaluate(network, data.test)
    assert found["accuracy"] == pytest.approx(expected["accuracy"])
    assert found["images"] == len(data.test_labels) == sum(map(sum, found["confusion"]))
    assert found["accuracy"] <= found["top5"] <= 100
    code, out, _ = run(capsys, "evaluate", trained / "net")
    assert code == 0
    for words in (f"{found['accuracy']:.2f} %", "top-5 accuracy", "calibration error", f"{found['per_class'][3]:.2f}"):
        assert words in out
    code, out, _ = run(capsys, "evaluate", trained / "net", "--best", "--json")
    best = torch.load(trained / "net" / "best.pt", weights_only=True)
    assert code == 0
    assert json.loads(out)["accuracy"] == pytest.approx(best["metrics"][-1]["test_accuracy"])


def test_evaluate_on_other_data_uses_the_statistics_of_training(trained, tmp_path, capsys):
    import numpy as np

    data = bf.load_dataset("digits")
    darker = data.test_images.numpy() * 0.5
    labels = data.test_labels.numpy()
    np.savez(tmp_path / "dark.npz", x_train=darker, y_train=labels, x_test=darker, y_test=labels)
    code, out, _ = run(capsys, "evaluate", trained / "net", "--dataset", f"npz:{tmp_path / 'dark.npz'}", "--json")
    assert code == 0
    network = bf.load(trained / "net")
    expected = bf.evaluate(network, MemoryImages(data.test_images * 0.5, data.test_labels, data.mean, data.std))
    assert json.loads(out)["accuracy"] == pytest.approx(expected["accuracy"])


def test_evaluate_refuses_what_does_not_fit(trained, tmp_path, capsys):
    import numpy as np

    x, y = np.random.rand(20, 8, 8, 3).astype(np.float32), np.arange(20) % 4
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    grey = np.random.rand(20, 8, 8).astype(np.float32)
    np.savez(tmp_path / "e.npz", x_train=grey, y_train=y, x_test=grey, y_test=y)
    for file, message in (
        ("d", "in_channels is 3, but the network was trained with 1"),
        ("e", "num_classes is 4, but"),
    ):
        code, out, err = run(capsys, "evaluate", trained / "net", "--dataset", f"npz:{tmp_path / file}.npz")
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = run(capsys, "evaluate", tmp_path / "nowhere")
    assert code == 2
    assert "no run folder" in err


def test_runs(trained, tmp_path, capsys):
    code, out, _ = run(capsys, "runs", trained, "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert min(row.pop("wall_seconds"), row.pop("processor_seconds")) > 0
    d, network = bf.load_dataset("digits"), bf.load(trained / "net")
    accuracy = bf.evaluate(network, d.test)["accuracy"]
    assert row == {
        "run": "net", "kind": "resnet resnet20 fa", "data": "digits", "seed": 5, "epochs": "2/2", "state": "complete",
        "accuracy": pytest.approx(accuracy),
    }  # fmt: skip
    code, out, _ = run(capsys, "runs", trained / "net")
    assert code == 0
    assert "resnet resnet20 fa" in out
    assert f"{accuracy:.2f}" in out


def test_names_of_runs_stay_in_one_piece(trained, tmp_path, capsys):
    name = "search-digits-bionas-darts-seed0-20260131-070000" * 2
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.yaml").write_text((trained / "net" / "config.yaml").read_text())
    _, out, _ = run(capsys, "runs", tmp_path)
    assert name in out and "resnet resnet20 fa" in out


def test_runs_that_run_have_stopped_or_are_damaged(trained, tmp_path, capsys):
    config = (trained / "net" / "config.yaml").read_text()
    for name in ("running", "elsewhere", "killed", "damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config if name != "damaged" else "kind: [")
    (tmp_path / "no run").mkdir()
    host = socket.gethostname()
    (tmp_path / "running" / HOLDER).write_text(f"process {os.getpid()} on {host}")
    (tmp_path / "elsewhere" / HOLDER).write_text(f"process 1 on not-{host}")
    (tmp_path / "killed" / HOLDER).write_text(f"process {2**22 + 1} on {host}")
    code, out, err = run(capsys, "runs", tmp_path, "--json")
    assert code == 0
    states = {row["run"]: row["state"] for row in json.loads(out)}
    assert states == {"running": "running", "elsewhere": "running", "killed": "stopped"}
    assert "damaged" in err
    code, _, err = run(capsys, "runs", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err


def test_train_a_named_network(tmp_path, capsys):
    words = ("train", "resnet32", "--rule", "brsf", "--epochs", 1, "--batch-size", 512, "--out", tmp_path / "net")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "test accuracy" in out
    assert "brsf" in out
    network = bf.load(tmp_path / "net")
    assert network[0].rule == "brsf"
    assert sum(p.numel() for p in network.parameters()) > 450_000  # ResNet-32
    code, _, err = run(capsys, "train", "resnet21", "--epochs", 1)
    assert code == 2
    assert "resnet21" in err
