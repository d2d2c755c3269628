"""Callbacks and loggers: what they see, and that they change nothing."""

from __future__ import annotations

import json
import struct
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.runs import callbacks as module
from helpers.genotypes import GENOTYPE
from helpers.runs import SETTINGS, plain


class Witness(bf.Callback):
    def __init__(self):
        self.seen, self.alphas, self.weights = [], [], []

    def on_begin(self, moment):
        self.seen.append(("begin", moment.epoch, moment.step))
        self.alphas.append({kind: alpha.detach().clone() for kind, alpha in moment.alphas.items()})
        torch.rand(3)  # must not change the run

    def on_step(self, moment):
        self.seen.append(("step", moment.epoch, moment.step))
        assert moment.loss is not None and moment.loss > 0
        self.weights.append(next(moment.network.parameters()).detach().clone())
        torch.rand(3)

    def on_epoch(self, moment):
        self.seen.append(("epoch", moment.epoch, moment.metrics["epoch"]))
        self.alphas.append({kind: alpha.detach().clone() for kind, alpha in moment.alphas.items()})

    def on_end(self, moment):
        self.seen.append(("end", moment.epoch, moment.step))


STEPS = [("step", 0, n) for n in range(1, 5)]


def test_a_search(tmp_path):
    config = bf.SearchConfig(**{**SETTINGS["search"], "epochs": 2})
    witness = Witness()
    found = bf.search(config, out=tmp_path / "run", callbacks=[witness])
    later = [("step", 1, n) for n in range(1, 5)]
    assert witness.seen == [("begin", 0, 0), *STEPS, ("epoch", 1, 1), *later, ("epoch", 2, 2), ("end", 2, 0)]
    for kind, recorded in found.alphas.items():
        assert [own[kind].numpy().tolist() for own in witness.alphas] == recorded.tolist()
    assert not torch.equal(witness.weights[0], witness.weights[-1])
    alone = bf.search(config, out=tmp_path / "alone")
    assert plain(alone.metrics) == plain(found.metrics)


def test_a_training_without_a_folder():
    witness = Witness()
    settings = {**SETTINGS["train"], "epochs": 1, "ema_decay": 0.0, "accumulate": 1}
    result = bf.train(GENOTYPE, bf.TrainConfig(**settings), callbacks=[witness], out=False)
    kinds = [name for name, *_ in witness.seen]
    assert kinds == ["begin", *["step"] * kinds.count("step"), "epoch", "end"]
    assert kinds.count("step") == len(witness.weights) > 1
    assert witness.alphas[0] == {}
    assert witness.weights[-1].shape == next(result.network.parameters()).shape


@pytest.mark.parametrize("wrong", [Witness(), [Witness], [print]], ids=["no list", "a class", "a function"])
def test_what_is_no_callback(tmp_path, wrong):
    with pytest.raises(InputError, match="callbacks: expected"):
        bf.search(bf.SearchConfig(**SETTINGS["search"]), out=tmp_path / "run", callbacks=wrong)
    assert not (tmp_path / "run").exists()


MADE = []


def make_logger(folder, config):
    """A logger, as a package provides one."""
    MADE.append((folder, config.epochs, Witness()))
    return MADE[-1][2]


def test_loggers_of_packages(tmp_path, monkeypatch):
    points = EntryPoints([EntryPoint("witness", f"{__name__}:make_logger", module.GROUP)])
    monkeypatch.setattr(module, "entry_points", lambda group: points.select(group=group))
    MADE.clear()
    settings = {**SETTINGS["search"], "epochs": 1}
    bf.search(bf.SearchConfig(**settings, loggers=("witness",)), out=tmp_path / "run")
    ((folder, epochs, witness),) = MADE
    assert (folder, epochs) == (tmp_path / "run", 1)
    assert witness.seen == [("begin", 0, 0), *STEPS, ("epoch", 1, 1), ("end", 1, 0)]
    points = EntryPoints([EntryPoint("wandb", "no_such_module:make", module.GROUP)])
    with pytest.raises(InputError, match=r"wandb cannot be imported: No module named .*; pip install"):
        bf.search(bf.SearchConfig(**settings, loggers=("wandb",)), out=tmp_path / "other")
    points = EntryPoints([EntryPoint("witness", f"{__name__}:make_logger", module.GROUP)])
    with pytest.raises(InputError, match="loggers: unknown logger 'witnes'; did you mean 'witness'"):
        bf.search(bf.SearchConfig(**settings, loggers=("witnes",)), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def records_of(content):
    """The records of a file of wandb: LevelDB's log format, after a header of 7 bytes."""
    block, at, record = 32768, 7, b""
    while at < len(content):
        if block - at % block < 7:  # too short for a header
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_weights_and_biases(tmp_path, monkeypatch):
    """What its offline mode wrote is read back from its file."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    factory = "bionas_fast.report.weights_and_biases:WeightsAndBiases"
    assert f'wandb = "{factory}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    points = EntryPoints([EntryPoint("wandb", factory, module.GROUP)])
    monkeypatch.setattr(module, "entry_points", lambda group: points.select(group=group))
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = bf.SearchConfig(**{**SETTINGS["search"], "epochs": 2}, loggers=("wandb",))
    found = bf.search(config, out=tmp_path / "run")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    rows, settings = {}, {}
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            step = record.history.step.num
            rows.setdefault(step, {})[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.run.config.update:
            settings[item.key] = json.loads(item.value_json)
    assert settings["channels"] == config.channels and settings["method"] == config.method
    for row in found.metrics:
        written = rows[row["epoch"]]
        assert written["loss/train"] == row["train_loss"] and written["accuracy/valid"] == row["valid_accuracy"]
        assert sum(written["alpha/normal.values"]) == found.alphas["normal"][0].size
    assert rows[2]["cells.format"] == "png"
    assert (tmp_path / "run" / "wandb-id.txt").read_text() in file.name
