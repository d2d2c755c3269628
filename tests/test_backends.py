"""The choice of backends: where it is made, and what keeps a backend from running."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import bionas_fast as bf
from bionas_fast import backends
from bionas_fast.nn import Conv2d, ConvTranspose2d, HebbianConv2d, Linear, PredictiveConv2d, connect_direct_feedback
from helpers.genotypes import GENOTYPE


def every_layer() -> nn.Module:
    """A network with a layer of every kind, and every rule."""
    rules = [name for name in bf.rules.names() if bf.rules.get(name).mode != "direct"]
    convolutions = [Conv2d(4, 4, 3, padding=1, rule=rule) for rule in rules]
    pointwise = [Conv2d(4, 4, 1, rule=rule) for rule in rules]
    others = [
        HebbianConv2d(4, 4, 3, padding=1),
        PredictiveConv2d(4, 4, 3, padding=1),
        ConvTranspose2d(4, 4, 3, rule="brsf"),
        Conv2d(4, 4, 3, rule="dfa"),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *(Linear(4, 4, rule=rule) for rule in rules)]
    net = nn.Sequential(*convolutions, *pointwise, *others, *head)
    connect_direct_feedback(net, 4)
    return net


NETWORKS = {
    "layers": every_layer,
    "stacked": lambda: bf.build_supernet(channels=4, cells=1, in_channels=4, seed=0),
    "modular": lambda: bf.build_supernet(channels=4, cells=1, in_channels=4, seed=0, engine="modular"),
    "hebbian candidates": lambda: bf.build_supernet(space="bionas-hl-pc", channels=4, cells=1, in_channels=4, seed=0),
    "genotype": lambda: bf.build_network(GENOTYPE, channels=4, cells=2, num_classes=3, in_channels=4),
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("backend", ["reference", None])
def test_no_backward_pass_chooses(build, backend, monkeypatch):
    """On a GPU it runs in a thread of autograd, which does not know the caller's choice."""
    torch.manual_seed(0)
    net, choices = build(), []
    x = torch.randn(4, 4, 8, 8, requires_grad=True)
    choose = backends.choose
    monkeypatch.setattr(backends, "choose", lambda *words: choices.append(words) or choose(*words))
    if backend is None:
        loss = net(x).square().sum()
    else:
        with bf.use_backend(backend):
            loss = net(x).square().sum()
    assert choices
    choices.clear()
    failures: list[BaseException] = []

    def backward() -> None:
        try:
            loss.backward()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert not failures
    assert x.grad.isfinite().all()
    assert choices == []
