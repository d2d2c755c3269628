"""Checkpoints that are damaged, foreign or do not fit: refused, and no file is changed."""

from __future__ import annotations

import io
import shutil

import pytest
import torch

from bionas_fast.runs import checkpoint
from helpers.runs import make, refuse


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    """One bit of a weight: torch.load would not notice."""
    weight = torch.load(io.BytesIO(data), weights_only=True)["net"]["classifier.weight"]
    at = data.index(weight.numpy().tobytes())
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class TestDamaged:
    @pytest.mark.parametrize("damage", [_truncated, _flipped, lambda data: b"", lambda data: b"hello"])
    def test_bytes(self, damage, stopped, whole):
        checkpoint = stopped / "checkpoint.pt"
        checkpoint.write_bytes(damage(checkpoint.read_bytes()))
        refuse(stopped, r"checkpoint\.pt is damaged or no checkpoint.*nothing .* was changed\. best\.pt, of the end of")
        (stopped / "best.pt").write_bytes(b"")
        refuse(stopped, r"checkpoint\.pt is damaged.*nothing in .* was changed$")

    def test_a_foreign_one(self, stopped):
        torch.save({"weights": torch.zeros(3)}, stopped / "checkpoint.pt")
        refuse(stopped, r"checkpoint\.pt is no checkpoint of a run")
        torch.save(torch.zeros(3), stopped / "checkpoint.pt")
        refuse(stopped, r"checkpoint\.pt is no checkpoint of a run")

    def test_one_of_a_newer_version(self, stopped):
        state = checkpoint.unpack(stopped / "checkpoint.pt")
        torch.save({**state, "format": 2}, stopped / "checkpoint.pt")
        refuse(stopped, "has format 2, and this version of bionas-fast reads 1: a newer version of bionas-fast wrote")

    def test_one_of_another_run(self, stopped, whole):
        shutil.copy(whole["train"][0] / "checkpoint.pt", stopped / "checkpoint.pt")
        refuse(stopped, "holds a run of kind 'train', not 'search'")
        other = make("search", epochs=2)
        (stopped / "checkpoint.pt").write_bytes(checkpoint.pack(other.state_dict()))
        refuse(stopped, "epochs: the checkpoint has 2, not 3")

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("net", "classifier.weight"), torch.zeros(3), r"net\.classifier\.weight: expected float32 \[10|4, "),
            (("net", "classifier.weight"), "double", "expected float32 .* got float64"),
            (("net", "classifier.weight"), None, "expected a tensor, got NoneType"),
            (("net", "extra"), torch.zeros(3), "net: 'extra' is unexpected"),
            (("net",), {}, "is missing"),
            (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(3), r"optimizer\.0\.momentum_buffer: expected"),
            (("optimizer", "state", 999), {}, "optimizer: 999 is none of"),
            (("strategy", "optimizer", "state", 1, "exp_avg"), "double", r"strategy\.optimizer\.1\.exp_avg"),
            (("strategy",), {}, "not the state of a run: KeyError"),
            (("batches",), [], "not the state of a run: ValueError"),
            (("batches", 0, "position"), 99, "batch stream was saved at batch 99 of 4"),
            (("valid", "permutation"), torch.zeros(32), "permutation is damaged"),
            (("random", "cpu"), torch.zeros(3, dtype=torch.uint8), "not the state of a run"),
            (("epoch",), 4, "epoch: 4 is out of range"),
            (("epoch",), "1", "epoch: expected int, got str"),
            (("tally", "steps"), 9, "tally: 9 steps"),
            (("metrics",), [], "metrics: expected 1 rows"),
            (("metrics", 0, "valid_accuracy"), "good", "metrics: row 1 is damaged"),
            (("alphas", "normal"), [], r"alphas\.normal: expected a list of 2"),
            (("config",), None, "holds no settings"),
            (("config", "epochs"), "many", "epochs: input should be"),
        ],
        ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
    )
    def test_entries_that_do_not_fit(self, path, value, message, stopped):
        state = checkpoint.unpack(stopped / "checkpoint.pt")
        place = state
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = place[path[-1]].double() if value == "double" else value
        torch.save(state, stopped / "checkpoint.pt")
        refuse(stopped, message)
