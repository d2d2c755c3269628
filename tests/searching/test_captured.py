"""Half steps of a search that are captured and replayed, by a stand-in for CUDA graphs on the CPU."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import Tensor

import bionas_fast as bf
from bionas_fast.runtime import distributed, graphs
from bionas_fast.searching import captured, darts, loop
from bionas_fast.searching.loop import Search
from helpers import recorded_graphs

BASE = bf.SearchConfig(
    dataset="digits", channels=2, cells=3, batch_size=16, epochs=3, rules=("brsf", "fa"), operations=("dil_conv_3x3",)
)
CARD = torch.device("cuda")


@pytest.fixture
def recording(monkeypatch):
    """Every step is captured that could be on a card; the number of captures."""
    made = []

    def record(function, inputs):
        found = recorded_graphs.record(function, inputs)
        made.append(function.__name__)
        return found

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "WARM_UP", 2)
    real = captured.obstacle
    monkeypatch.setattr(captured, "obstacle", lambda config, net, device: real(config, net, CARD))
    # As on a card, where Adam counts its steps.
    monkeypatch.setattr(darts.Darts, "_reads_gradients", False)
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *given, **options: adam(*given, **options | {"capturable": True}))
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_get_capturable_supported_devices", lambda *given, **options: ["cpu"]
    )
    return made


def run(config: bf.SearchConfig, steps: int = 4, epochs: int = 2) -> tuple[Search, list[float]]:
    """Some steps of the first epochs, and their losses."""
    trainer, losses = Search(config), []
    for _ in range(epochs):
        trainer.enter_epoch()
        losses += [trainer.step() for _ in range(steps)]
        trainer.end_epoch()
    return trainer, losses


VARIANTS = {
    "stacked": {},
    "modular": {"engine": "modular"},
    "learned": {"rules": ("kp", "nsf", "brsf")},
    "pc-darts": {"partial_channels": 2, "edge_normalisation": True},
    "beta-darts": {"beta_decay": 5.0},
    "darts-": {"auxiliary_skip": True, "operations": ("dil_conv_3x3", "skip_connect")},
    "bf16": {"amp": "bf16"},
    "warm-up": {"warmup_epochs": 1},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_replayed_steps_are_the_eager_ones(recording, settings):
    """Weights, alphas, running statistics and draws, through epochs with other learning rates."""
    config = BASE.with_settings(**settings)
    ours, losses = run(config)
    captures = ["_alpha_step", "_weight_step"] * 2 if "warmup_epochs" not in settings else None
    assert captures is None or sorted(recording) == sorted(captures)
    assert len(recording) >= 3
    plain, expected = run(config.with_settings(cuda_graphs="off"))
    assert len({round(loss, 6) for loss in losses}) == len(losses)
    assert losses == pytest.approx(expected, rel=1e-4)
    wanted = plain.net.state_dict()
    for name, value in ours.net.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    start = Search(config).net
    moved = [name for name, value in start.state_dict().items() if not torch.equal(wanted[name], value)]
    assert any("stream" in name for name in moved)
    for alpha, before in zip(ours.net.alpha_parameters(), start.alpha_parameters(), strict=True):
        assert not torch.equal(alpha, before)


def test_a_graph_that_outlives_its_epoch_would_be_seen(recording, monkeypatch):
    """It would go on with the learning rate of the first epoch."""
    monkeypatch.setattr(graphs.Replayed, "forget", lambda self: None)
    ours, _ = run(BASE)
    plain, _ = run(BASE.with_settings(cuda_graphs="off"))
    ours, plain = (torch.cat([w.flatten() for w in own.net.weight_parameters()]) for own in (ours, plain))
    assert (ours - plain).norm() > 1e-2 * plain.norm()


def test_resuming_captures_anew(recording):
    whole, _ = run(BASE, steps=6, epochs=1)
    stopped, resumed = Search(BASE), Search(BASE)
    stopped.enter_epoch()
    for _ in range(4):
        stopped.step()
    resumed.load_state_dict(stopped.state_dict())
    resumed.enter_epoch()
    for _ in range(2):
        resumed.step()
    resumed.end_epoch()
    wanted = whole.net.state_dict()
    for name, value in resumed.net.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_step_that_cannot_be_captured_runs_eagerly(recording, monkeypatch, caplog):
    weights = loop.Search._weight_step

    def waiting(self, x: Tensor, y: Tensor):
        results = weights(self, x, y)
        float(results[0])
        return results

    _, expected = run(BASE.with_settings(cuda_graphs="off"))
    monkeypatch.setattr(loop.Search, "_weight_step", waiting)
    with caplog.at_level(logging.INFO, "bionas_fast"):
        ours, losses = run(BASE)
    assert "a step could not be captured: aten::_local_scalar_dense" in ours.weight_step.obstacle
    assert ours.weight_step.obstacle in caplog.text
    assert set(recording) == {"_alpha_step"}
    assert losses == pytest.approx(expected, rel=1e-4)


OBSTACLES = {
    "off": ({"cuda_graphs": "off"}, "cuda_graphs is off"),
    "darts2": ({"method": "darts2"}, "method darts2"),
    "random": ({"method": "random"}, "method random"),
    "gdas": ({"sampling": "gdas"}, "draws on the host"),
    "fp16": ({"amp": "fp16"}, "loss scale"),
    "plastic": ({"space": "bionas-hl-pc", "rules": (), "operations": ()}, "Hebbian layers"),
}


@pytest.mark.parametrize(("settings", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_obstacles(settings, reason):
    config = BASE.with_settings(**settings)
    space = bf.space.get_space(config.space).restricted(config.rules, config.operations)
    net = bf.build_supernet(space=space, channels=2, cells=3, in_channels=1)
    assert reason in captured.obstacle(config, net, CARD)
    assert "CUDA" in captured.obstacle(BASE, net, torch.device("cpu"))


def test_obstacles_of_processes_and_of_foreign_modules(monkeypatch):
    space = bf.space.get_space("bionas").restricted(BASE.rules, BASE.operations)
    net = bf.build_supernet(space=space, channels=2, cells=3, in_channels=1)
    assert captured.obstacle(BASE, net, CARD) == ""
    net.extra = type("Sampler", (torch.nn.Module,), {"__module__": "elsewhere"})()
    assert "Sampler" in captured.obstacle(BASE, net, CARD)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert "exchange gradients" in captured.obstacle(BASE, net, CARD)
