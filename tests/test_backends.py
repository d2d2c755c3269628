"""The choice of backends: where it is made, and what keeps a backend from running."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

import bionas_fast as bf
from bionas_fast import InputError, backends
from bionas_fast.nn import Conv2d, ConvTranspose2d, HebbianConv2d, Linear, PredictiveConv2d, connect_direct_feedback
from helpers.genotypes import GENOTYPE
from helpers.tolerances import SAME_BITS


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


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_the_default_device_does_not_matter(build):
    """Whatever a pass creates lies on the devices of its arguments; tensors of the default one have no memory here."""
    torch.manual_seed(0)
    net, x, results = build(), torch.randn(4, 4, 8, 8), []
    for own in (net, copy.deepcopy(net)):
        with torch.device("meta" if own is not net else "cpu"):
            out = own(x)
            out.square().sum().backward()
        results.append([out, *(p.grad for p in own.parameters() if p.grad is not None), *own.buffers()])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, **SAME_BITS)


@pytest.fixture
def forgetful(monkeypatch):
    """Let the machine seem to have a GPU, and Triton be tried again."""
    backends._triton_failure.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    backends._triton_failure.cache_clear()


def test_a_triton_that_cannot_compile_falls_back(forgetful, monkeypatch):
    """An explicit choice gives Triton's own reason, as doctor does."""
    triton_probe = pytest.importorskip("bionas_fast.kernels.triton_probe", reason="Triton exists for Linux only")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    class Broken:
        def warmup(self, *_: object, **__: object) -> None:
            raise RuntimeError("Failed to find C compiler.\n  Please specify CC")

    monkeypatch.setattr(triton_probe, "probe_kernel", Broken())
    choice = backends.explain("mixed_edges", "cuda")
    assert choice.backend == "reference"
    reason = "Triton cannot compile a kernel: Failed to find C compiler. Please specify CC"
    assert choice.reasons["triton"] == reason
    with pytest.raises(InputError, match=f"mixed_edges cannot run on backend 'triton': {reason}"):
        backends.choose("mixed_edges", "cuda", "triton")


def test_the_probe_compiles_where_there_is_a_gpu():
    triton_probe = pytest.importorskip("bionas_fast.kernels.triton_probe", reason="Triton exists for Linux only")
    assert bool(triton_probe.failure()) != torch.cuda.is_available()


def test_triton_is_tried_once(forgetful, monkeypatch):
    triton_probe = pytest.importorskip("bionas_fast.kernels.triton_probe", reason="Triton exists for Linux only")
    tried: list[int] = []

    def failure() -> str:
        tried.append(1)
        return ""

    monkeypatch.setattr(triton_probe, "failure", failure)
    assert {backends.explain(op, "cuda").backend for op in ("mixed_edges", "feedback_conv")} == {"triton"}
    assert len(tried) == 1
