"""What a step asks of a GPU stays within bounds: launches, copies from the host, waits. No GPU is needed."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import native
from bionas_fast.runtime import graphs
from bionas_fast.searching import loop
from bionas_fast.training import genotype, softhebb, supervised
from launches import DEVICE, Card, Counts

pytest.importorskip("triton", reason="Triton exists for Linux only")

from bionas_fast.kernels.factorized_reduce import triton as factorized_reduce
from bionas_fast.kernels.feedback import triton as feedback
from bionas_fast.kernels.mixed_sum import triton as mixed_sum
from bionas_fast.kernels.normalisation import triton as normalisation
from bionas_fast.kernels.partial_sums import triton as partial_sums
from bionas_fast.kernels.pooling import triton as pooling
from bionas_fast.kernels.separable_stage import triton as separable_stage

LAUNCHERS = [feedback, separable_stage, mixed_sum, pooling, normalisation, partial_sums, factorized_reduce]
#: Launches of any kind in half a step of the paper's supernet, without the optimiser.
HALF_STEP = {"weights": 830, "alphas": 700}
#: A space that is quick to build.
SMALL = {"channels": 2, "cells": 2, "rules": ("usf", "brsf"), "operations": ("sep_conv_3x3", "skip_connect")}


@pytest.fixture
def card(monkeypatch):
    return Card(monkeypatch, LAUNCHERS)


@pytest.fixture(scope="module")
def net():
    """The paper's supernet: 5 cells, 16 channels, 22 candidates on each of 14 edges."""
    return bf.build_supernet(channels=16, cells=5, seed=0).to(DEVICE)


@pytest.mark.parametrize("half", HALF_STEP)
def test_half_a_step(card, net, half):
    parameters = [*net.weight_parameters()] if half == "weights" else net.alpha_parameters()
    wanted = {id(parameter) for parameter in parameters}
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    x, y = torch.randn(64, 3, 32, 32, device=DEVICE), torch.zeros(64, dtype=torch.int64, device=DEVICE)
    for _ in range(2):  # the first makes the tables
        with card.counted() as counts:
            torch.autograd.grad(F.cross_entropy(net(x), y), parameters)
    assert counts.kernels
    assert counts.launches <= HALF_STEP[half]
    assert not counts.blocking
    assert not counts.waits


def test_a_population(card):
    net = bf.build_supernet(channels=4, cells=2, seed=0).to(DEVICE).eval()
    mixing = {kind: weights[None].repeat(3, 1, 1) for kind, weights in net.architecture.mixing().items()}
    for _ in range(2):
        with card.counted() as counts:
            net.population(torch.randn(4, 3, 8, 8, device=DEVICE), mixing)
    assert counts.kernels
    assert not counts.blocking
    assert not counts.waits


def second_step(card: Card, monkeypatch: pytest.MonkeyPatch, module: ModuleType, make) -> Counts:
    """Count the second step of a run whose class chooses its device in ``module``."""
    monkeypatch.setattr(module, "resolve_device", lambda name: DEVICE)
    with card.counted():
        run = make()
        run.enter_epoch()
        run.step()
    with card.counted() as counts:
        run.step()
    assert counts.launches
    return counts


@pytest.mark.parametrize(
    "options", [{}, {"edge_normalisation": True, "partial_channels": 2}], ids=["darts", "pc-darts"]
)
def test_a_step_of_a_search(card, monkeypatch, options):
    config = bf.SearchConfig(dataset="digits", batch_size=8, flip=True, crop_padding=1, cutout=2, **SMALL, **options)
    counts = second_step(card, monkeypatch, loop, lambda: loop.Search(config))
    assert counts.kernels
    assert not counts.blocking
    assert not counts.waits


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_what_a_graph_captures_reads_nothing_from_the_host(card, monkeypatch, amp):
    """Not even copies without waiting, which a graph would repeat from memory that the host has used again."""
    halves = []

    def counting(self, step, *inputs):
        with card.counted() as counts:
            results = step(*inputs)
        halves.append((step.__name__, counts))
        return results

    monkeypatch.setattr(graphs.Replayed, "run", counting)
    config = bf.SearchConfig(dataset="digits", batch_size=8, amp=amp, beta_decay=1.0, epochs=4, **SMALL)
    second_step(card, monkeypatch, loop, lambda: loop.Search(config))
    assert [name for name, _ in halves] == ["_alpha_step", "_weight_step"] * 2
    for _, counts in halves[2:]:  # the first step makes tables
        assert counts.kernels
        assert not counts.copies
        assert not counts.blocking
        assert not counts.waits


def test_a_step_of_training(card, monkeypatch):
    found = bf.build_supernet(channels=2, cells=2).genotype()
    monkeypatch.setattr(genotype, "resolve_device", lambda name: DEVICE)
    config = bf.TrainConfig(dataset="digits", channels=2, cells=2, batch_size=8, flip=True)
    counts = second_step(card, monkeypatch, supervised, lambda: genotype.Training(found, config))
    assert counts.kernels
    assert not counts.blocking
    assert not counts.waits


@pytest.mark.skipif(not native.load(), reason="the compiled kernels are not available")
def test_a_step_of_softhebb(card, monkeypatch):
    config = softhebb.SoftHebbConfig(dataset="digits", feature_batch_size=8)
    counts = second_step(card, monkeypatch, softhebb, lambda: softhebb.SoftHebbTraining(config))
    assert not counts.blocking
    assert not counts.waits
