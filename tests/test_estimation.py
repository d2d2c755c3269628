"""Estimates of what a run costs: counted steps, and times and memory that follow from measured ones."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace

import pytest
import torch

import bionas_fast as bf
from bionas_fast import InputError, presets
from bionas_fast.cli import output
from bionas_fast.cli.app import main
from bionas_fast.config import Work
from bionas_fast.data import dataset_size, load_dataset
from bionas_fast.data.registry import unannounced
from bionas_fast.estimation import duration, steps
from bionas_fast.models import measure_size
from bionas_fast.runs.measurement import PhaseTimes, time_left
from bionas_fast.runs.progress import Progress
from bionas_fast.searching import Search, SearchConfig, darts, eg
from bionas_fast.space import published
from bionas_fast.training import supervised
from bionas_fast.training.genotype import Training
from bionas_fast.training.resnet import ResNetTraining
from bionas_fast.training.softhebb import SoftHebbTraining
from helpers.genotypes import GENOTYPE

MODULE = sys.modules["bionas_fast.runs.measurement"]
SMALL = {"channels": 1, "cells": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Search(SearchConfig(**SMALL, epochs=3, batch_size=50, train_fraction=0.3)),
        lambda: Training(GENOTYPE, bf.TrainConfig(**SMALL, epochs=2, batch_size=100, valid_fraction=0.17)),
        lambda: Training(GENOTYPE, bf.TrainConfig(**SMALL, batch_size=10_000)),
        lambda: ResNetTraining(bf.ResNetConfig(epochs=5)),
        lambda: SoftHebbTraining(bf.SoftHebbConfig(layerwise=True, feature_epochs=2, epochs=4)),
        lambda: SoftHebbTraining(bf.SoftHebbConfig(layerwise=True, feature_epochs=2, rule="random")),
    ],
    ids=["search", "held out", "one batch", "resnet", "softhebb", "random filters"],
)
def test_the_steps_are_those_of_the_run(make):
    trainer = make()
    size = dataset_size(trainer.config)
    works = trainer.config.work(size.images, size.test_images)
    expected = [(phase.epochs, len(phase.batches)) for phase in trainer.phases]
    assert [(work.epochs, work.steps) for work in works] == expected
    assert steps(trainer.config) == sum(epochs * number for epochs, number in expected)
    assert size == (1438, 359, (1, 8, 8), 10)
    if isinstance(trainer, Search):
        assert works[0].evaluated == len(trainer.validation.labels)
    elif isinstance(trainer, Training):
        held_out = 0 if trainer.held_out is None else len(trainer.held_out.labels)
        assert works[0].evaluated == held_out + 359


def test_sizes_of_datasets(tmp_path):
    data = load_dataset("digits")
    assert dataset_size(bf.TrainConfig()) == (len(data.labels), len(data.test_labels), (1, 8, 8), 10)
    noise = bf.TrainConfig(dataset="noise:2x5x4,classes=3,images=7")
    assert dataset_size(noise) == (7, 7, (2, 5, 4), 3)
    assert dataset_size(bf.TrainConfig(dataset="imagenet", image_size=192)).image == (3, 192, 192)


def test_a_larger_phase():
    """Computed by hand: a step takes 1 s and 0.5 s per image, the beginning of an epoch 0.25 s per image."""
    few = PhaseTimes(Work(1, 12, 2, 6), once=1.0, begin=0.5, step=2.0, further=7.0, evaluation=6.0)
    some = PhaseTimes(Work(1, 12, 4, 6), once=2.0, begin=1.0, step=3.0, further=7.0, evaluation=6.0)
    assert some.seconds == 2 + 1 + 3 * 3 + 7 + 6
    large = Work(10, 120, 8, 60)
    assert some.scaled(few, large) == PhaseTimes(large, once=20.0, begin=2.0, step=5.0, further=7.0, evaluation=60.0)
    assert some.scaled(few, large).seconds == 20 + 10 * (2 + 15 * 5 + 60) + 7
    assert some.scaled(few, Work(10, 6, 8, 60)).step == 4  # of a step of all six images
    # From one measurement, in proportion; a step of more images never takes less.
    assert some.scaled(some, large).step == 6
    assert some.scaled(replace(few, step=3.5), large).step == 3
    assert some.scaled(replace(few, step=0.5), large).step == 6


@pytest.fixture
def clock(monkeypatch):
    """A clock: a training step takes 3 s and 0.5 s per image, an evaluation 0.1 s per image, a record of layers 7 s."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(MODULE, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    train_step, evaluate = supervised.SupervisedTraining.train_step, supervised.evaluate

    def step(self, x, y):
        now.seconds += 3 + 0.5 * len(x)
        return train_step(self, x, y)

    def timed(network, images, *arguments, **options):
        now.seconds += 0.1 * len(images.labels)
        return evaluate(network, images, *arguments, **options)

    def record(*arguments):
        now.seconds += 7
        return []

    monkeypatch.setattr(supervised.SupervisedTraining, "train_step", step)
    monkeypatch.setattr(supervised, "record_layers", record)
    monkeypatch.setattr(supervised, "evaluate", timed)
    return now


@pytest.mark.parametrize("seconds", [1.0, 1e9], ids=["few images", "whole batches"])
def test_the_time_is_that_of_the_run(clock, seconds):
    config = bf.TrainConfig(**SMALL, epochs=2, batch_size=100, valid_fraction=0.25, record_layers=1)
    found = bf.estimate(config, GENOTYPE, seconds=seconds)
    assert found.measured == (100 if seconds > 1 else 8)
    assert found.batch_size == 100
    assert found.step_seconds == pytest.approx(53)
    clock.seconds = 0.0
    bf.train(GENOTYPE, config, out=False)
    assert found.seconds == pytest.approx(clock.seconds - 7)  # the record of the untrained network is not counted
    assert found.steps == 2 * 10
    network = bf.build_network(GENOTYPE, **SMALL, in_channels=1)
    assert found.size == measure_size(network, (1, 8, 8))


def test_memory_limits_what_is_measured(clock, monkeypatch):
    config = bf.TrainConfig(**SMALL, epochs=2, batch_size=100)
    monkeypatch.setattr(sys.modules["bionas_fast.estimation"], "free_memory", lambda device: 1000)
    found = bf.estimate(config, GENOTYPE, seconds=1e9)
    assert found.measured == 4
    assert "measured with 4" in found.lines()["step"]
    assert "more than" not in found.lines()["memory"]
    assert replace(found, memory=10**15).lines()["memory"] == "about 1000000.0 GB, more than is free here"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is reset through /proc")
def test_memory_grows_with_the_batch(monkeypatch):
    """Every image of a step takes 20 MB: 100 of them 2 GB, which are not used."""
    train_step = supervised.SupervisedTraining.train_step

    def step(self, x, y):
        torch.ones(len(x), 5_000_000)
        return train_step(self, x, y)

    monkeypatch.setattr(supervised.SupervisedTraining, "train_step", step)
    process = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = bf.estimate(bf.TrainConfig(**SMALL, epochs=2, batch_size=100), GENOTYPE, seconds=1e-6)
    assert found.measured == 8
    assert 1.8e9 < found.memory < process + 2.6e9  # with the process itself


def test_a_search_is_estimated():
    config = SearchConfig(**SMALL, operations=("skip_connect",), method="eg", population=4, generations=1, epochs=4)
    found = bf.estimate(config.with_settings(warmup_epochs=2, valid_batch_size=32), seconds=0.1)
    assert found.kind == "search"
    assert found.steps == 4 * (719 // 64)
    assert found.seconds > 0
    assert "weights by rule" not in found.lines()


class Told(Progress):
    """What a run says before its first step."""

    timed = True

    def __init__(self) -> None:
        self.said: list[object] = []

    def begin(self, facts):
        self.said.append("facts")

    @contextmanager
    def measuring(self):
        self.said.append("measuring")
        yield

    def expect(self, seconds):
        self.said.append(seconds)

    def start(self, description, epochs, steps):
        self.said.append("start")


def test_a_run_says_how_long_it_will_take(clock, tmp_path):
    """And what is left of it, if it was stopped in the middle."""
    config = bf.TrainConfig(**SMALL, epochs=4, batch_size=50, valid_fraction=0.1)  # 25 steps an epoch
    told = Told()

    class Stop(bf.Callback):
        def on_step(self, moment):
            if (moment.epoch, moment.step) == (1, 20):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bf.train(GENOTYPE, config, out=tmp_path / "run", progress=told, callbacks=[Stop()])
    *before, whole, start = told.said
    assert (before, start) == (["facts", "measuring"], "start")
    clock.seconds = 0.0
    bf.train(GENOTYPE, config, out=False)
    assert whole == pytest.approx(clock.seconds)

    told = Told()
    bf.train(resume=tmp_path / "run", progress=told)  # from the end of the first epoch
    assert told.said[2] == pytest.approx(0.75 * whole)
    told = Told()
    bf.train(GENOTYPE, config.with_settings(epochs=1), out=False, progress=told)
    assert told.said == ["facts", "measuring", "start"]  # it is shorter than the measurement


def test_a_heavy_network_is_measured_with_few_images(clock, monkeypatch):
    config = bf.TrainConfig(**SMALL, epochs=4, batch_size=50)
    run = Training(GENOTYPE, config)
    batches = []

    def build(small):
        batches.append(small.batch_size)
        return Training(GENOTYPE, small)

    light = time_left(run, build)
    monkeypatch.setattr(Training, "operations", lambda self: 10**9)
    heavy = time_left(run, build)
    assert batches == [50, 4]
    assert light == pytest.approx(4 * (28 * (3 + 0.5 * 50) + 0.1 * 359))
    assert heavy == pytest.approx(4 * (28 * (3 + 0.5 * 4) * 50 / 4 + 0.1 * 359))  # in proportion
    assert time_left(Training(GENOTYPE, config.with_settings(compile=True)), build) is None
    monkeypatch.setattr(Training, "train_step", lambda *arguments: 1 / 0)
    assert time_left(run, build) is None  # the run itself will raise it, and say where


@pytest.mark.parametrize("method", ["darts", "eg", "evolution"])
def test_a_search_is_not_changed_by_the_measurement(method, tmp_path):
    """Its network, its random numbers and those of the caller."""
    few = {} if method == "darts" else {"population": 4, "generations": 2}
    config = SearchConfig(
        **SMALL, **few, operations=("sep_conv_3x3", "skip_connect"), method=method, epochs=5, batch_size=70
    )
    told = Told()
    torch.manual_seed(0)
    found = bf.search(config, out=tmp_path / "told", progress=told)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    expected = bf.search(config, out=tmp_path / "run")
    assert torch.equal(drawn, torch.rand(1))
    assert told.said[2] > 0
    for row in (*found.metrics, *expected.metrics):
        del row["seconds"]
    assert found.metrics == expected.metrics


def test_populations_are_measured_once(monkeypatch):
    """Of 40 generations, one is measured; the estimate counts all."""
    config = SearchConfig(**SMALL, operations=("skip_connect",), method="eg", population=4, generations=40, epochs=5)
    bred = []
    monkeypatch.setattr(
        eg.PersistentEvolution, "fitness", lambda self, rows, x, y: bred.append(1) or rows[:, 0].double()
    )
    search = Search(config)
    assert search.shorten() == 40
    search.method.prepare(4)
    search.begin()
    assert len(bred) == len(search.method.distributions)
    assert Search(SearchConfig(**SMALL, operations=("skip_connect",))).shorten() == 0


@pytest.mark.parametrize("warm", [None, 0, 3])
@pytest.mark.parametrize("method", ["darts", "eg"])
def test_a_warm_up_is_shorter(monkeypatch, method, warm):
    """A weight step takes 1 s, one of the architecture 2 s, a generation 5 s: the last two after the warm-up only."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(MODULE, "time", SimpleNamespace(perf_counter=lambda: now.seconds))

    def lasting(seconds, function):
        def run(*arguments):
            now.seconds += seconds
            return function(*arguments)

        return run

    monkeypatch.setattr(Search, "_weight_step", lasting(1, Search._weight_step))
    monkeypatch.setattr(darts.Darts, "_alpha_step", lasting(2, darts.Darts._alpha_step))
    monkeypatch.setattr(eg.PersistentEvolution, "fitness", lasting(5, lambda self, rows, x, y: rows[:, 0].double()))
    options = {"population": 4, "generations": 3} if method == "eg" else {"projection_epochs": 2}
    config = SearchConfig(
        **SMALL, **options, operations=("skip_connect",), method=method, epochs=12, batch_size=70, warmup_epochs=warm
    )
    warm = warm if warm is not None else 2
    steps, searches = 719 // 70, config.eg_searches
    further = 15 * searches if method == "eg" else 2 * steps
    assert time_left(Search(config), Search) == pytest.approx(12 * steps + (12 - warm) * further)


def test_phases_of_softhebb():
    config = bf.SoftHebbConfig(epochs=4, batch_size=64, dataset="noise:1x8x8,classes=3,images=400")
    run = SoftHebbTraining(config)
    assert time_left(run, SoftHebbTraining) is not None  # 40 and 24 steps are worth it, 24 are not
    run.epoch = 1
    assert run.phase.counted
    assert time_left(run, SoftHebbTraining) is None


def test_resumed_heads_compute_their_features_again(monkeypatch):
    """The features of all images are not part of a checkpoint: of 49 of 50 epochs they are most of the rest."""
    config = bf.SoftHebbConfig(epochs=50, batch_size=5, dataset="noise:1x8x8,classes=3,images=300")
    now, run = SimpleNamespace(seconds=0.0), SoftHebbTraining(config)
    monkeypatch.setattr(MODULE, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    store, step = SoftHebbTraining._store, SoftHebbTraining.train_step

    def slow(self, images, shape):
        now.seconds += len(images)
        return store(self, images, shape)

    def quick(self, x, y):
        now.seconds += 0.01
        return step(self, x, y)

    monkeypatch.setattr(SoftHebbTraining, "_store", slow)
    monkeypatch.setattr(SoftHebbTraining, "train_step", quick)
    filters = config.filter_epochs * len(run.filters.batches)
    features = 2 * 300  # of training and test images
    assert time_left(run, SoftHebbTraining) == pytest.approx(features + 0.01 * (filters + 50 * 60))
    run.epoch = config.filter_epochs + 49
    assert time_left(run, SoftHebbTraining) == pytest.approx(features + 0.01 * 60)


@pytest.mark.parametrize(("every", "pauses"), [(0, 0), (1, 8), (3, 3), (8, 1)])
def test_pauses_and_records_are_counted(clock, monkeypatch, every, pauses):
    """Weight mirrors between epochs and records of layers, whatever the batch that is measured."""

    def paused(net, steps):
        clock.seconds += 10 * steps

    monkeypatch.setattr(MODULE, "mirror", paused)
    settings = {"mirror_every": every, "mirror_steps": 6, "record_layers": every}
    run = Training(GENOTYPE, bf.TrainConfig(**SMALL, epochs=8, batch_size=200, **settings))
    expected = 8 * (7 * (3 + 0.5 * 200) + 0.1 * 359) + pauses * (60 + 7)
    assert time_left(run, lambda small: Training(GENOTYPE, small)) == pytest.approx(expected)
    monkeypatch.setattr(Training, "operations", lambda self: 10**9)  # measured with four images
    few = 8 * (7 * (3 + 0.5 * 4) * 50 + 0.1 * 359) + pauses * (60 + 7)
    assert time_left(run, lambda small: Training(GENOTYPE, small)) == pytest.approx(few)


@pytest.mark.parametrize("fraction", [0.1, 0.9, 0.99])
def test_small_parts_are_measured(clock, monkeypatch, fraction):
    monkeypatch.setattr(Training, "operations", lambda self: 10**9)
    run = Training(GENOTYPE, bf.TrainConfig(**SMALL, epochs=60, batch_size=10, valid_fraction=fraction))
    steps = len(run.phases[0].batches)
    expected = 60 * (steps * (3 + 0.5 * 4) * 10 / 4 + 0.1 * (359 + len(run.held_out.labels)))
    assert time_left(run, lambda small: Training(GENOTYPE, small)) == pytest.approx(expected)


@pytest.mark.parametrize("fraction", [0.1, 0.99])
def test_small_parts_of_searches_are_measured(fraction):
    search = SearchConfig(**SMALL, operations=("skip_connect",), train_fraction=fraction, batch_size=10)
    assert bf.estimate(search, seconds=0.1).seconds > 0


def test_a_measurement_stops_when_the_run_is_to_stop():
    run, asked = Training(GENOTYPE, bf.TrainConfig(**SMALL, epochs=4, batch_size=50)), []
    assert time_left(run, lambda small: Training(GENOTYPE, small), lambda: asked.append(1) or len(asked) > 2) is None
    assert len(asked) == 3


def test_measurements_in_threads_leave_the_messages_on(caplog):
    caplog.set_level("INFO", "bionas_fast.data")
    inside, left = Barrier(2), []

    def load(quiet: bool) -> None:
        with unannounced() if quiet else nullcontext():
            inside.wait()
            left.append(load_dataset("noise:1x4x4,classes=2,images=9" if quiet else "digits"))
            inside.wait()

    threads = [Thread(target=load, args=(quiet,)) for quiet in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(left) == 2
    assert [record.message[:16] for record in caplog.records] == ["dataset 'digits'"]


def test_what_has_to_be_given():
    with pytest.raises(InputError, match="genotype: a train takes one"):
        bf.estimate(bf.TrainConfig())
    with pytest.raises(InputError, match="genotype: a resnet takes none"):
        bf.estimate(bf.ResNetConfig(), GENOTYPE)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "0.0012 s"),
        (1.26, "1.3 s"),
        (59, "59 s"),
        (130, "2.2 minutes"),
        (7_300, "2.0 hours"),
        (40_000, "11 hours"),
        (41 * 86_400, "41 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "form", ["", "3x8", "3x8x8,classes=2", "0x8x8,classes=2,images=5", "3x8x8,classes=2,images=-1"]
)
def test_noise_of_no_form(form):
    with pytest.raises(InputError, match=r"expected (a form such as|an argument)"):
        load_dataset(f"noise:{form}")


def test_noise():
    data = load_dataset("noise:3x8x6,classes=4,images=500")
    assert data.images.shape == data.test_images.shape == (500, 3, 8, 6)
    assert data.labels.bincount().tolist() == [125] * 4
    assert not torch.equal(data.images, data.test_images)
    assert torch.equal(data.images, load_dataset("noise:3x8x6,classes=4,images=500").images)
    assert abs(data.mean[0] - 0.5) < 0.01
    with pytest.raises(InputError, match="of memory, but"):
        load_dataset("noise:3x224x224,classes=1000,images=100000000")


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_the_list_of_presets(capsys):
    assert run("presets") == 0
    shown = capsys.readouterr().out
    for preset in presets.every():
        assert preset.name in shown
        assert preset.source[:40] in shown
    # 50,000 images in batches of 96, 600 times; 25,000 in batches of 256, 50 times.
    for words in (("cifar10-train ", "312,000"), ("cifar10-paper", "4,850"), ("imagenet-train", "312,750")):
        assert any(all(word in line for word in words) for line in shown.splitlines())


def test_what_a_preset_costs(capsys):
    assert run("presets", "cpu-digits-train", "--seconds", "0.1", "--genotype", "darts-v2") == 0
    shown = capsys.readouterr()
    size = measure_size(bf.build_network(published("darts-v2").genotype, channels=8, cells=3, in_channels=1), (1, 8, 8))
    for words in (f"{size.parameters:,}", "440", "about", "this machine", "epochs: 20", "darts-v2"):
        assert words in shown.out
    assert "Traceback" not in shown.err
    assert run("presets", "cpu-digit") == 2
    assert "'cpu-digits'" in capsys.readouterr().err


def test_the_costs_of_all_presets(capsys, monkeypatch):
    monkeypatch.setattr(output.out, "width", 200)
    few = tuple(preset for preset in presets.every() if preset.name in ("cpu-digits", "cpu-digits-train"))
    monkeypatch.setattr(presets, "every", lambda: few)
    assert run("presets", "--estimate", "--seconds", "0.1") == 0
    lines = capsys.readouterr().out.splitlines()
    for name, number in (("cpu-digits ", "110"), ("cpu-digits-train", "440")):
        assert any(name in line and f" {number} " in line and " GB" in line for line in lines)
