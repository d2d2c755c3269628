"""Numbers that are not finite end a run with a clear error, and nothing before them is lost."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.cli.app import main
from bionas_fast.config import Config
from bionas_fast.data import MemoryImages
from bionas_fast.errors import BionasWarning
from bionas_fast.evaluation import evaluate
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.searching import loop, method_names
from bionas_fast.searching.fitness import cross_entropies
from bionas_fast.training import softhebb, supervised
from helpers import killing
from helpers.runs import SETTINGS, advance, make, plain, start

MODULES = {"search": loop, "train": supervised, "resnet": supervised, "softhebb": softhebb}


def settings_of(kind: str, **settings: Any) -> Config:
    """Return the settings of a small run of this kind."""
    return get_kind(kind).settings(**{**SETTINGS[kind], **settings})


def strict(text: str) -> list[Any]:
    """Parse lines of JSON as the standard has it, without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", MODULES)
def test_a_metric_that_is_not_finite_ends_the_run(kind, value, tmp_path, monkeypatch):
    module, calls = MODULES[kind], []
    second = 3 if kind == "train" else 2  # it judges held-out images, too

    def broken(*arguments: Any, **keywords: Any) -> dict[str, float]:
        found = evaluate(*arguments, **keywords)
        calls.append(None)
        return {**found, "loss": value} if len(calls) == second else found

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", broken)
        with pytest.raises(InputError, match=r"loss.* not finite in epoch 2, .*likely causes: \w+ = ") as raised:
            start(kind, settings_of(kind), out=tmp_path / "run")
    assert "\n" not in str(raised.value)
    rows = strict((tmp_path / "run" / "metrics.jsonl").read_text())
    assert [row["epoch"] for row in rows] == [1]
    # The checkpoint is whole: without the fault the run ends as if there had been none.
    resumed = start(kind, None, resume=tmp_path / "run")
    undisturbed = start(kind, settings_of(kind), out=tmp_path / "whole")
    assert plain(resumed.metrics) == plain(undisturbed.metrics)


@pytest.mark.parametrize("kind", MODULES)
def test_weights_that_are_not_finite_never_replace_a_checkpoint(kind, tmp_path, monkeypatch):
    trainer, steps = type(make(kind)), []
    original = trainer.train_step

    def broken(self: Any, x: Any, y: Any) -> Any:
        result = original(self, x, y)
        steps.append(None)
        if len(steps) == 11:  # after a number of checkpoints, each after a step
            with torch.no_grad():
                next(self.net.parameters()).view(-1)[0] = math.inf
        return result

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", broken)
        with pytest.raises(InputError, match=r"not finite in epoch \d+, .*likely causes: learning_rate = "):
            start(kind, settings_of(kind), out=tmp_path / "run")
    state = RunFolder.open(tmp_path / "run").read_checkpoint()
    assert all(weight.isfinite().all() for weight in state["net"].values() if weight.is_floating_point())
    resumed = start(kind, None, resume=tmp_path / "run")
    undisturbed = start(kind, settings_of(kind), out=tmp_path / "whole")
    assert plain(resumed.metrics) == plain(undisturbed.metrics)


@pytest.mark.parametrize("method", method_names())
def test_every_method_ends_when_its_weights_diverge(method, tmp_path):
    settings = {"method": method, "weight_decay": 1e6, "learning_rate": 1.0}
    settings |= {} if method.startswith("darts") else {"population": 4}
    with pytest.raises(InputError, match=r"not finite in epoch \d+.*(learning_rate = 1\.0, weight_decay = 1000000\.0)"):
        start("search", settings_of("search", **settings), out=tmp_path)


def test_the_step_size_of_eg_is_named_itself():
    """The largest one still ends in a result; a larger one is refused by its name, not blamed on the learning rate."""
    with pytest.raises(InputError, match=r"eg_sigma: .*got 1e\+300"):
        bf.SearchConfig(method="eg", eg_sigma=1e300)
    trainer = make("search", method="eg", eg_sigma=1e6, population=4, generations=1)
    advance(trainer)
    assert all(math.isfinite(row["valid_loss"]) for row in trainer.metrics)
    assert trainer.genotype.rules


def test_the_command_line_says_so_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--set=weight_decay=1e6", "--set=learning_rate=1", "--set=batch_size=8"]
    with pytest.raises(SystemExit) as stop:
        main(["search", f"--dataset={killing.DATASET}", "--channels=1", "--cells=1", "--ops=dil_conv_3x3", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "not finite in epoch" in error and "weight_decay = 1000000.0" in error


def test_pixels_are_not_blamed_on_the_learning_rate():
    trainer = make("train")
    trainer.phases[0].batches._pixels[3] = math.nan
    with pytest.raises(InputError, match=r"epoch 1, step \d of 6 .*dataset 'specks' hold pixels") as raised:
        advance(trainer)
    assert "learning_rate" not in str(raised.value)


def logits(losses: list[float]) -> torch.Tensor:
    """Logits [P, 2, 3] whose cross-entropy with class 0 is given, up to NaN."""
    rows = [[0.0, math.log(max(math.expm1(loss), 1e-12)), -1e4] for loss in losses]
    return torch.tensor(rows, dtype=torch.float64)[:, None].expand(-1, 2, -1)


def test_an_individual_without_a_finite_loss_loses():
    losses = [1.5, math.nan, 0.5, math.nan]
    found = cross_entropies(logits(losses), torch.zeros(2, dtype=torch.int64)).numpy()
    np.testing.assert_allclose(found, [1.5, np.inf, 0.5, np.inf], rtol=1e-6)
    with pytest.raises(InputError, match="every architecture"):
        cross_entropies(logits([math.nan, math.nan]), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("method", ["eg", "eg-published", "random", "evolution"])
@pytest.mark.parametrize("all_broken", [False, True], ids=["one", "all"])
def test_a_population_survives_an_individual_but_not_all(method, all_broken, tmp_path, monkeypatch):
    broken = []

    def population(self: Any, x: torch.Tensor, mixing: Any) -> torch.Tensor:
        result = original(self, x, mixing)
        if len(result) > 1:
            broken.append(None)
            result[slice(None) if all_broken else 1] = math.nan
        return result

    net = type(make("search").net)
    original = net.population
    monkeypatch.setattr(net, "population", population)
    settings = {"method": method, "population": 4, "epochs": 2}
    if all_broken:
        with pytest.raises(InputError, match=r"every architecture .* is not finite in epoch 1"):
            start("search", settings_of("search", **settings), out=tmp_path / "run")
        return
    result = start("search", settings_of("search", **settings), out=tmp_path / "run")
    strategy = RunFolder.open(tmp_path / "run").read_checkpoint()["strategy"]
    assert broken and all(math.isfinite(row["valid_loss"]) for row in result.metrics)
    if method == "eg":
        fitness = strategy["distributions"][0]["fitness"].numpy()
        assert np.isfinite(fitness).all()
        others = np.delete(fitness, 1, axis=1)
        np.testing.assert_array_equal(fitness[:, 1], others.max(axis=1))
    if method in ("random", "evolution"):
        losses = strategy["losses"].numpy()
        assert np.isinf(losses[1])
        assert np.isfinite(np.delete(losses, 1)).all()
        assert result.genotype.to_json() == strategy["population"][losses.argmin()]


def numbers(kind: str) -> list[str]:
    """The settings of a kind of run that are one number."""
    fields = get_kind(kind).settings.model_fields
    return [name for name, field in fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("kind", kind_names())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", True], ids=str)
def test_settings_are_finite_numbers(kind, value):
    for name in numbers(kind):
        with pytest.raises(InputError, match=f"^{name}: "):
            get_kind(kind).settings(**{name: value})


def test_a_new_setting_inherits_that():
    class Own(Config):
        strength: float = 1.0
        pair: tuple[float, float] = (0.0, 1.0)
        count: int = 1
        flag: bool = False

    assert Own(strength=2, flag=True).strength == 2.0
    for settings in ({"strength": math.inf}, {"pair": (0.0, math.nan)}, {"count": True}, {"pair": (True, 1.0)}):
        with pytest.raises(InputError, match=f"^{next(iter(settings))}"):
            Own(**settings)


def test_metrics_are_strict_json(stopped, tmp_path):
    with RunFolder.create(tmp_path / "new") as folder, pytest.raises(ValueError, match="JSON"):
        folder.write_metrics([{"epoch": 1, "valid_loss": math.nan}])
    folder = RunFolder.open(stopped)
    (stopped / "metrics.jsonl").write_text('{"epoch": 1, "valid_loss": NaN}\n')
    with pytest.raises(InputError, match="line 1: not JSON"):
        folder.read_metrics()


def test_an_epoch_without_a_loss_is_null_in_the_metrics(tmp_path, monkeypatch):
    """In float16 every step of a first epoch may be skipped until the loss scale fits."""
    trainer = type(make("search"))
    original = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda self, x, y: original(self, x, y)._replace(loss=None))
    start("search", settings_of("search", epochs=2), out=tmp_path / "run")
    assert [row["train_loss"] for row in strict((tmp_path / "run" / "metrics.jsonl").read_text())] == [None, None]
    with pytest.warns(BionasWarning, match="complete"):
        start("search", None, resume=tmp_path / "run")


def test_evaluation_refuses_a_network_without_finite_logits():
    class Broken(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1)) * math.nan

    with pytest.raises(InputError, match=r"cross-entropy .* not finite"):
        evaluate(Broken(4, 2), MemoryImages(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])))
