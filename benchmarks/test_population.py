"""A population of architectures in one pass, next to one forward pass each of both engines."""

from __future__ import annotations

import torch

import bionas_fast as bf
from measuring import interleaved, relative, show

INDIVIDUALS, BATCH = 50, 128
#: The supernet of a search on digits with the default settings.
SHAPE = {"channels": 4, "cells": 3, "num_classes": 10, "in_channels": 1}


def test_population(benchmark, report, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 1, 8, 8, generator=generator).to(device)
    nets = {engine: bf.build_supernet(engine=engine, **SHAPE).to(device) for engine in ("stacked", "modular")}
    nets["stacked"].load_modular(nets["modular"])
    for net in nets.values():
        net.eval()
    space = nets["stacked"].space
    shape = INDIVIDUALS, len(space.edges), len(space.candidates)
    mixing = {kind: torch.softmax(torch.randn(shape, generator=generator), -1).to(device) for kind in space.kinds}
    one = {kind: own[0] for kind, own in mixing.items()}

    few = {kind: own[:3] for kind, own in mixing.items()}
    exact = nets["modular"].double().population(x.double(), {kind: own.double() for kind, own in few.items()})
    nets["modular"].float()
    assert relative(nets["stacked"].population(x, few).double(), exact) < 1e-4

    @torch.no_grad()
    def forward(engine):
        return nets[engine](x, one)

    times = interleaved(
        {
            "population": lambda: nets["stacked"].population(x, mixing),
            "stacked": lambda: forward("stacked"),
            "modular": lambda: forward("modular"),
        }
    )
    times["population"] /= INDIVIDUALS
    what = f"{INDIVIDUALS} individuals, batch {BATCH} of 8×8, {device}"
    report.ratios(f"{what}, an individual", times, "modular", "(target: 8)")
    report.ratios(f"{what}, an individual", {k: times[k] for k in ("population", "stacked")}, "stacked", "(target: 1)")
    show(benchmark, lambda: nets["stacked"].population(x, mixing), INDIVIDUALS * times["population"])
