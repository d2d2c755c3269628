"""Both engines from the same seed: the same initial weights, feedback, streams and alphas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.space import get_space
from bionas_fast.supernet import Mixture, SupernetOptions
from helpers.supernets import relative
from helpers.tolerances import GRADIENT_FLOAT64, OUTPUT_FLOAT64

CASES = {
    "bionas": {},
    "darts": {"space": "darts-bp"},
    "nb201": {"space": "nb201", "cells": 1},
    "plastic": {"space": "bionas-hl-pc"},
    "dfa": {"space": get_space("bionas").restricted(["dfa", "fa"], ["sep_conv_3x3", "nor_conv_3x3", "skip_connect"])},
    "fixed": {"options": SupernetOptions(fixed={"stem": "brsf", "preprocess": "fa", "head": "frsf"})},
    "published skips": {"options": SupernetOptions(skip_rules=False)},
    "mixture": {"options": SupernetOptions(mixture=Mixture(True, True, 2))},
}


def build(engine, case, seed=3):
    return bf.build_supernet(**{"channels": 2, "cells": 1, "in_channels": 1, "engine": engine, "seed": seed, **case})


def values(tensors):
    """All values of the tensors in one order that does not depend on the engine."""
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors]).sort().values


@pytest.mark.parametrize("case", CASES)
def test_initial_state(case):
    stacked, modular = build("stacked", CASES[case]), build("modular", CASES[case])
    for group in (
        lambda net: net.weight_parameters(),
        lambda net: net.alpha_parameters(),
        # Feedback that was drawn once, and seeds of streams; the engines name them otherwise.
        lambda net: [b for name, b in net.named_buffers() if name.rpartition(".")[2] in ("feedback", "stored")],
        lambda net: [
            b.view(-1, 2)[:, 0][b.view(-1, 2)[:, 0] != 0]
            for name, b in net.named_buffers()
            if name.rpartition(".")[2] in ("feedback_stream", "stream")
        ],
    ):
        tensors = [torch.empty(0)]
        assert torch.equal(values([*tensors, *group(stacked)]), values([*tensors, *group(modular)]))
    x, y = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.arange(2)
    gradients = []
    for net in (stacked.double(), modular.double()):
        outputs = net(x)
        F.cross_entropy(outputs, y).backward()
        gradients.append((outputs, [alpha.grad for alpha in net.alpha_parameters()]))
    assert relative(gradients[0][0], gradients[1][0]) < OUTPUT_FLOAT64
    for own, other in zip(gradients[0][1], gradients[1][1], strict=True):
        assert own is other is None or relative(own, other) < GRADIENT_FLOAT64


def test_another_seed_gives_other_weights():
    assert not torch.equal(
        values(build("stacked", {}, seed=4).weight_parameters()), values(build("modular", {}).weight_parameters())
    )
