"""Exported networks give the outputs of the trained ones, in programs that do not know this package."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.cli.app import main
from bionas_fast.data import Dataset, MemoryImages, Source, names
from bionas_fast.runs import checkpoint
from bionas_fast.training import exporting
from helpers.tolerances import REORDERED_FLOAT32, SAME_BITS


def genotype(normal: list[str], reduce: list[str]) -> bf.Genotype:
    """A genotype of one node."""
    cells = {"normal": {"nodes": [normal]}, "reduce": {"nodes": [reduce]}}
    return bf.Genotype.from_json(json.dumps({"format_version": 1, **cells}))


RULES = genotype(["sep_conv_3x3@dfa<-0", "skip_connect@brsf<-1"], ["dil_conv_5x5@kp<-0", "avg_pool_3x3<-1"])
PLASTIC = genotype(["hebbian_conv_3x3<-0", "predictive_conv_3x3<-1"], ["sep_conv_3x3@fa<-0", "max_pool_3x3<-1"])
SMALL = {"dataset": "stripes", "epochs": 1, "batch_size": 16}
TRAIN = {**SMALL, "channels": 2, "cells": 3, "auxiliary_weight": 0.4, "drop_path": 0.2}
RUNS = {
    "genotype": lambda out: bf.train(RULES, bf.TrainConfig(**TRAIN), out=out),
    "plastic": lambda out: bf.train(PLASTIC, bf.TrainConfig(**SMALL, channels=4, cells=1), out=out),
    "resnet": lambda out: bf.train_resnet(bf.ResNetConfig(**SMALL, rule="brsf", ema_decay=0.5), out=out),
    "softhebb": lambda out: bf.train_softhebb(bf.SoftHebbConfig(**SMALL, feature_batch_size=16), out=out),
}
CLASSES = ("plain", "striped", "dotted")
ENDINGS = (".onnx", ".pt2")
#: The metadata that are texts; in ONNX the others are JSON.
TEXTS = ("input", "dataset", "kind", "architecture", "bionas-fast")


def stripes(data_dir=None, *, download=False, seed=0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (48, 3, 12, 10), generator=generator, dtype=torch.uint8)
    x[:, 1] //= 3  # each channel has statistics of its own
    y = torch.arange(48) % 3
    return Dataset.from_tensors("stripes", (x, y), (x[:9], y[:9]), 3, Source(CLASSES))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run of every kind, made when it is asked for."""
    root = tmp_path_factory.mktemp("runs")

    def get(kind):
        if not (root / kind).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(names.registry._items, "stripes", stripes)
                RUNS[kind](root / kind)
        return root / kind

    return get


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, 12, 10), dtype=np.float32)


def statistics() -> tuple[np.ndarray, np.ndarray]:
    pixels = stripes().images.numpy().astype(np.float64) / 255
    return tuple(of(pixels, axis=(0, 2, 3)).reshape(3, 1, 1) for of in (np.mean, np.std))


def expected(run, x: np.ndarray) -> np.ndarray:
    """Normalise by NumPy, in float64, and apply the network as it was trained."""
    mean, std = statistics()
    with torch.no_grad():
        return bf.load(run)(torch.from_numpy(((x - mean) / std).astype(np.float32))).numpy()


def outputs(file, x: np.ndarray) -> np.ndarray:
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"images": x})[0]
    return torch.export.load(file).module()(torch.from_numpy(x)).detach().numpy()


def metadata(file) -> dict:
    if file.suffix == ".onnx":
        entries = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        return {
            name: value if name in TEXTS and value != "null" else json.loads(value) for name, value in entries.items()
        }
    files = {exporting.METADATA: ""}
    torch.export.load(file, extra_files=files)
    return json.loads(files[exporting.METADATA])


def expect_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < REORDERED_FLOAT32 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("kind", "ending"), [(kind, ending) for kind in RUNS for ending in ENDINGS if (kind, ending) != ("resnet", ".pt2")]
)
def test_outputs(runs, tmp_path, kind, ending):
    run, file = runs(kind), tmp_path / f"net{ending}"
    found = bf.export(run, file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # one file, whole
    for count in (1, 2, 7):
        expect_close(outputs(file, images(count)), expected(run, images(count)))
    if ending == ".onnx":
        model = onnx.load(file)
        onnx.checker.check_model(model, full_check=True)
        (given,), (result,) = model.graph.input, model.graph.output
        shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (given, result)]
        assert shapes == [["batch", 3, 12, 10], ["batch", 3]]
    assert str(exporting.__file__).encode() not in file.read_bytes()  # no paths of this machine
    mean, std = statistics()
    assert metadata(file) == found
    assert found["input"] == "images in [0, 1]"
    assert found["classes"] == list(CLASSES)
    assert (found["in_channels"], found["image_size"], found["num_classes"]) == (3, [12, 10], 3)
    np.testing.assert_allclose(found["mean"], mean.ravel(), rtol=1e-12)
    np.testing.assert_allclose(found["std"], std.ravel(), rtol=1e-12)
    assert (found["dataset"], found["kind"]) == ("stripes", "train" if kind == "plastic" else found["kind"])
    has_genotype = kind in ("genotype", "plastic")
    assert (found["genotype"] is not None) == has_genotype
    if has_genotype:
        assert bf.Genotype.from_json(json.dumps(found["genotype"])) == bf.load(run).genotype
    tests = MemoryImages(stripes().test_images, stripes().test_labels, mean.ravel(), std.ravel())
    assert bf.evaluate(bf.load(run), tests)["accuracy"] == pytest.approx(found["test_accuracy"])


def test_without_normalisation(runs, tmp_path):
    run, file = runs("genotype"), tmp_path / "net.pt2"
    found = bf.export(run, file, normalised=True)
    assert "normalised" in found["input"]
    mean, std = statistics()
    x = ((images(3) - mean) / std).astype(np.float32)
    expect_close(outputs(file, x), expected(run, images(3)))


WITHOUT_PACKAGE = """
import sys
sys.modules["bionas_fast"] = None
import numpy, torch
program = torch.export.load(sys.argv[1])
x = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[2], program.module()(x).detach().numpy())
"""


def test_in_a_program_without_this_package(runs, tmp_path):
    run = runs("plastic")
    bf.export(run, tmp_path / "net.pt2")
    np.save(tmp_path / "x.npy", images(4))
    command = [sys.executable, "-c", WITHOUT_PACKAGE, tmp_path / "net.pt2", tmp_path / "x.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expect_close(np.load(tmp_path / "x.npy"), expected(run, images(4)))


def test_gradients_of_the_inputs(runs, tmp_path):
    """An exported network can be attacked: the gradient of its input is the true one."""
    run = runs("genotype")
    bf.export(run, tmp_path / "net.pt2", normalised=True)
    gradients = []
    network = bf.load(run)
    for forward in (torch.export.load(tmp_path / "net.pt2").module(), network):
        x = torch.from_numpy(images(3)).requires_grad_()
        with bf.true_gradients(network):
            forward(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_the_best_checkpoint(runs, tmp_path):
    run = runs("resnet")
    state = checkpoint.unpack(run / "checkpoint.pt")
    name = next(name for name in reversed(state["average"]) if name.endswith("bias"))
    state["average"][name] = state["average"][name] + 3.0
    (run / "best.pt").write_bytes(checkpoint.pack({**state, "metrics": [{"test_accuracy": 12.5}]}))
    try:
        assert bf.export(run, tmp_path / "best.pt2", best=True)["test_accuracy"] == 12.5
        bf.export(run, tmp_path / "last.pt2")
        best, last = (outputs(tmp_path / f"{which}.pt2", images(2)) for which in ("best", "last"))
        np.testing.assert_allclose(best, last + 3, rtol=1e-5)
    finally:
        (run / "best.pt").unlink()
    with pytest.raises(InputError, match=r"has no best\.pt"):
        bf.export(run, tmp_path / "best.onnx", best=True)
    assert not (tmp_path / "best.onnx").exists()


def test_an_interrupted_epoch_has_no_accuracy():
    row = [{"test_accuracy": 50.0}]
    assert exporting._test_accuracy({"metrics": row, "tally": {"steps": 0}}) == 50.0
    assert exporting._test_accuracy({"metrics": row, "tally": {"steps": 3}}) is None
    for damaged in ({}, {"metrics": 3, "tally": {}}, {"metrics": ["x"], "tally": {"steps": 0}}):
        assert exporting._test_accuracy(damaged) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.pt", r"net\.pt: expected a file that ends in \.onnx or \.pt2"),
        ("net", r"ends in \.onnx or \.pt2"),
        ("none/net.pt2", r"there is no folder .*none"),
        ("folder.onnx", r"it is a folder"),
    ],
)
def test_unusable_files(runs, tmp_path, name, message):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=message) as raised:
        bf.export(runs("resnet"), tmp_path / name)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize("absent", ["onnx", "onnxscript"])
def test_onnx_is_optional(runs, tmp_path, monkeypatch, absent):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == absent else object())
    with pytest.raises(InputError, match=rf"{absent}: pip install"):
        bf.export(runs("genotype"), tmp_path / "net.onnx")
    bf.export(runs("genotype"), tmp_path / "net.pt2")


def test_runs_without_a_network(tmp_path, runs):
    with pytest.raises(InputError, match="no run folder"):
        bf.export(tmp_path / "nowhere", tmp_path / "net.pt2")
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "config.yaml").write_text("kind: search\n")
    with pytest.raises(InputError, match="holds no trained network"):
        bf.export(folder, tmp_path / "net.pt2")
    config = (runs("resnet") / "config.yaml").read_text()
    for line in ("- 0.5", "- .nan", "- 1"):  # another length, not a number, not of the right type
        damaged = config.replace("  std:\n", f"  std:\n  {line}\n")
        assert damaged != config
        (folder / "config.yaml").write_text(damaged)
        with pytest.raises(InputError, match="expected in_channels, num_classes, image_size, mean and std"):
            bf.export(folder, tmp_path / "net.pt2")
    assert not (tmp_path / "net.pt2").exists()


def test_a_failure_keeps_the_old_file(runs, tmp_path, monkeypatch):
    file = tmp_path / "net.pt2"
    file.write_text("old")

    def fail(*_, **__):
        raise RuntimeError("data-dependent\ncontrol flow")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(InputError, match=r"torch\.export cannot trace the network: data-dependent$"):
        bf.export(runs("genotype"), file)
    assert file.read_text() == "old"
    monkeypatch.undo()
    bf.export(runs("genotype"), file)
    expect_close(outputs(file, images(1)), expected(runs("genotype"), images(1)))


def test_the_weights_keep_their_names(runs, tmp_path):
    """A file of torch.export holds the weights under the names of ``bf.load``."""
    run = runs("genotype")
    bf.export(run, tmp_path / "net.pt2", normalised=True)
    own = bf.load(run).state_dict()
    exported = torch.export.load(tmp_path / "net.pt2").state_dict
    assert set(exported) <= set(own)
    for name, value in exported.items():
        torch.testing.assert_close(value, own[name], **SAME_BITS)


def test_command(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", str(runs("softhebb")), str(tmp_path / "net.pt2")])
    assert stop.value.code == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for words in ("net.pt2", "images [N, 3, 12, 10]", "images in [0, 1]", "logits [N, 3]"):
        assert words in shown.out
