"""Callbacks and loggers: what they see, and that they change nothing."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

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
    result = bf.train(GENOTYPE, bf.TrainConfig(**settings), callbacks=[witness])
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
    with pytest.raises(InputError, match="loggers: unknown logger 'witnes'; did you mean 'witness'"):
        bf.search(bf.SearchConfig(**settings, loggers=("witnes",)), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
