"""What only a CUDA device can show: ``pytest --device cuda tests/test_on_a_card.py``; skipped elsewhere."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.kernels import launching
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.kernels.pooling import reference as pooling_reference
from bionas_fast.ops.feedback import feedback_linear
from bionas_fast.searching import Search, search
from bionas_fast.searching.frozen import frozen
from bionas_fast.space import get_space
from bionas_fast.supernet import Mixture, Supernet, SupernetOptions
from helpers import cards, distributed_worker
from helpers.tolerances import ENGINE_GRADIENTS, ENGINES, SAME_BITS

#: Launches of a half step of the paper's supernet, as counted without a card in benchmarks/test_launches.py.
LAUNCHES = 900
LAUNCHING = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"}
#: Relative errors of one product in float32, and of factors with 11 bits.
IEEE, TF32 = 1e-5, 3e-3


@pytest.fixture
def card(cuda) -> Iterator[torch.device]:
    """Operations without a deterministic implementation are allowed: those of modules, not those of the kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield cuda


def supernet(device: torch.device, engine: str = "stacked", **settings) -> Supernet:
    return bf.build_supernet(
        **{"channels": 8, "cells": 3, "in_channels": 2, "engine": engine, "seed": 1} | settings
    ).to(device)


def batch(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images of an odd size, and their labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, 9, 7, generator=generator, dtype=dtype)
    return x.to(device), torch.arange(6, device=device)


def parameters(net: Supernet, half: str) -> list[nn.Parameter]:
    return net.alpha_parameters() if half == "alphas" else list(net.weight_parameters())


def half_step(net: Supernet, x: Tensor, y: Tensor, half: str) -> list[Tensor]:
    """Logits, and the gradients of alphas or weights; zeros for those that the loss does not depend on."""
    with frozen(parameters(net, "weights" if half == "alphas" else "alphas")):
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        grads = torch.autograd.grad(loss, parameters(net, half), allow_unused=True, materialize_grads=True)
    return [logits.detach(), *grads]


every_half = pytest.mark.parametrize("half", ["alphas", "weights"])
NETS = {
    "bionas": {},
    "partial channels": {"options": SupernetOptions(mixture=Mixture(partial_channels=2, edge_normalisation=True))},
    "dfa": {"space": get_space("bionas").restricted(("dfa", "brsf"), ())},
    "modules": {"space": "bionas-hl-pc"},
}


@pytest.mark.parametrize("settings", NETS.values(), ids=NETS)
def test_engines_agree_in_float64(card, settings):
    """Logits in evaluation and in training, gradients of alphas, and weights after a step along their gradients."""
    modular, stacked = (supernet(card, engine, **settings).double() for engine in ("modular", "stacked"))
    stacked.load_modular(modular)
    x, y = batch(card, torch.float64)
    torch.testing.assert_close(stacked.eval()(x), modular.eval()(x), **ENGINES)
    results = [half_step(net.train(), x, y, "alphas") for net in (stacked, modular)]
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, **ENGINE_GRADIENTS)
    for net in (stacked, modular):
        with frozen(net.alpha_parameters()):
            F.cross_entropy(net(x), y).backward()
        torch.optim.SGD(net.weight_parameters(), 0.1).step()
    wanted = modular.state_dict()
    for name, value in stacked.to_modular().state_dict().items():
        torch.testing.assert_close(value, wanted[name], **ENGINE_GRADIENTS)


@every_half
def test_kernels_err_no_more_than_modules(card, half):
    """Both engines in float32 against float64."""
    modular = supernet(card, "modular")
    exact, stacked = copy.deepcopy(modular).double(), supernet(card)
    stacked.load_modular(modular)
    x, y = batch(card)
    with bf.precision("ieee"):
        ours, theirs = (half_step(net, x, y, half) for net in (stacked, modular))
    wanted = half_step(exact, x.double(), y, half)
    results = [ours, theirs, wanted] if half == "alphas" else [own[:1] for own in (ours, theirs, wanted)]
    mine, others, right = (torch.cat([t.double().flatten() for t in own]) for own in results)
    assert (mine - right).norm() <= 3 * (others - right).norm() + IEEE * right.norm()


def test_the_backward_pass_runs_the_backend_of_the_forward_pass(card, monkeypatch):
    """Autograd runs it in a thread of its own."""
    from triton.runtime.jit import JITFunction

    started: list[str] = []
    net, (x, y) = supernet(card), batch(card)
    with bf.use_backend("reference"):
        loss = F.cross_entropy(net(x), y)
    run = JITFunction.run
    monkeypatch.setattr(JITFunction, "run", lambda self, *a, **k: started.append(self.__name__) or run(self, *a, **k))
    loss.backward()
    assert started == []
    F.cross_entropy(net(x), y).backward()
    assert started


@every_half
def test_a_half_step_never_waits_and_launches_few_kernels(card, half):
    net = bf.build_supernet(channels=16, cells=5, seed=0).to(card)
    x, y = torch.randn(16, 3, 32, 32, device=card), torch.arange(16, device=card) % 10
    for _ in range(2):  # compiles, and copies tables
        half_step(net, x, y, half)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        half_step(net, x, y, half)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile() as profile:
        half_step(net, x, y, half)
        torch.cuda.synchronize()
    launches = sum(event.name in LAUNCHING for event in profile.events())
    assert 0 < launches <= LAUNCHES


@every_half
def test_a_captured_half_step_is_the_eager_one(card, half):
    """Three steps of gradient descent, of which every replay draws new feedback."""
    net, (x, y) = supernet(card, space=get_space("bionas").restricted(("brsf",), ())), batch(card)
    twin = copy.deepcopy(net)
    state = copy.deepcopy(net.state_dict())

    def step(own: Supernet) -> list[Tensor]:
        logits, *grads = half_step(own, x, y, half)
        with torch.no_grad():
            for parameter, grad in zip(parameters(own, half), grads, strict=True):
                parameter.sub_(0.1 * grad)
        return [logits]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(net)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (logits,) = step(net)
    net.load_state_dict(state)
    draws = []
    for _ in range(3):
        graph.replay()
        (wanted,) = step(twin)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
        draws.append([value.clone() for name, value in net.named_buffers() if name.endswith("stream")])
    for (name, ours), theirs in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
    if half == "weights":
        for before, after in pairwise(draws):
            assert not any(map(torch.equal, before, after))


SMALL = distributed_worker.BASE.with_settings(device="cuda", deterministic=True, epochs=1)


def test_deterministic_runs_repeat_and_resume_bit_for_bit(cuda):
    whole, again, stopped, resumed = (Search(SMALL) for _ in range(4))
    for trainer, steps in ((whole, 3), (again, 3), (stopped, 2)):
        trainer.enter_epoch()
        for _ in range(steps):
            trainer.step()
    resumed.load_state_dict(stopped.state_dict())
    resumed.enter_epoch()
    resumed.step()
    for name, value in whole.net.state_dict().items():
        assert value.is_cuda
        torch.testing.assert_close(again.net.state_dict()[name], value, **SAME_BITS)
        torch.testing.assert_close(resumed.net.state_dict()[name], value, **SAME_BITS)


@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_a_search_by_graphs_is_the_eager_one(cuda, engine):
    """Through two epochs, the second of which has another learning rate."""
    results = []
    for graphs in ("auto", "off"):
        trainer = Search(SMALL.with_settings(cuda_graphs=graphs, engine=engine, epochs=2))
        for _ in range(2):
            trainer.enter_epoch()
            for _ in range(5):
                trainer.step()
            if graphs == "auto":
                assert trainer.weight_step.replays
                assert trainer.method.alpha_step.replays
            trainer.end_epoch()
        results.append(trainer.net.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_mixing_weights_stay_float32_under_autocast(card, engine, dtype):
    """The gradient of a rounded weight would be a number of the narrow dtype."""
    net, (x, y) = supernet(card, engine), batch(card)
    mixing = {kind: own.detach().requires_grad_() for kind, own in net.architecture.mixing().items()}
    with torch.autocast("cuda", dtype):
        loss = F.cross_entropy(net(x, mixing), y)
    for grad in torch.autograd.grad(loss, list(mixing.values())):
        grad = grad[grad.abs() > 1e-4]
        assert grad.dtype == torch.float32
        assert (grad.to(dtype).float() == grad).float().mean() < 0.1


@every_half
def test_another_stream_gives_the_same_bits(card, half):
    (x, y), results = batch(card), []
    side = torch.cuda.Stream()
    for stream in (torch.cuda.current_stream(), side):
        net = supernet(card)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results.append(half_step(net, x, y, half))
        torch.cuda.current_stream().wait_stream(stream)
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, **SAME_BITS)


def test_a_device_that_is_not_the_current_one(card):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    results = []
    for device in (torch.device("cuda", 0), torch.device("cuda", 1)):
        with torch.cuda.device(0):
            results.append([t.cpu() for t in half_step(supernet(device), *batch(device), "weights")])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-5)


@every_half
def test_compiled_as_one_graph(card, half):
    net, (x, y) = supernet(card, cells=1), batch(card)
    wanted = half_step(copy.deepcopy(net), x, y, half)
    compiled = torch.compile(net, fullgraph=True)
    with frozen(parameters(net, "weights" if half == "alphas" else "alphas")):
        logits = compiled(x)
        loss = F.cross_entropy(logits, y)
        grads = torch.autograd.grad(loss, parameters(net, half), allow_unused=True, materialize_grads=True)
    for ours, other in zip([logits.detach(), *grads], wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-5)


def launch(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=cards.environment())


@pytest.fixture
def two_cards(cuda) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


def test_two_processes_search_as_one_does(two_cards, tmp_path):
    """Over NCCL, with the same global batches; rounding differs."""
    done = launch(distributed_worker.__file__, "run", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    search(distributed_worker.CASES["darts"].with_settings(device="cuda"), out=tmp_path / "one")
    one, two = (np.load(folder / "alphas.npz") for folder in (tmp_path / "one", tmp_path / "two" / "darts"))
    moved = np.abs(one["normal"][-1] - one["normal"][0]).max()
    assert np.abs(one["normal"] - two["normal"]).max() < 5e-2 * moved


def test_a_dead_process_ends_the_other_with_a_checkpoint(two_cards, tmp_path):
    ended = launch(distributed_worker.__file__, "die", tmp_path)
    assert ended.returncode != 0
    assert "another process of this run has ended" in ended.stderr
    assert f"resume with: bionas-fast search --resume {tmp_path / 'dead'}" in ended.stderr
    rows = (tmp_path / "dead" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2**14, 256, 255, 16), True), ((2**14, 256, 256, 16), False), ((1, 2**12, 2**12, 16), False)],
    ids=["rows-below", "rows-at-the-limit", "block-at-the-limit"],
)
def test_positions_that_32_bits_cannot_count_run_on_the_reference(shape, expected):
    """Tensors without memory; no card is needed."""
    x = torch.empty(shape, device="meta")
    assert launching.fits(x, (torch.float32,)) == expected


def test_more_elements_than_32_bits_count(card):
    """Addresses beyond 2³¹ elements: the last image of a batch, computed alone by the reference."""
    from bionas_fast.kernels.pooling import triton as pooling

    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free memory on the CUDA device")
    x = torch.empty(2049, 128, 128, 64, dtype=torch.float16, device=card)
    x.zero_()
    x[-1].normal_()
    assert x.numel() > 2**31
    z, _ = pooling.forward(x, 1)
    wanted, _ = pooling_reference.forward(x[-1:].float(), 1)
    torch.testing.assert_close(z[:, -1:].float(), wanted, rtol=1e-3, atol=1e-3)
    assert not z[:, :-1].any()


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(("products", "limit"), [("ieee", IEEE), ("tf32", TF32)])
def test_precision_of_products(card, products, limit, backend):
    """A convolution, a matrix product and the error through B, against float64."""
    torch.manual_seed(0)
    x, w = torch.randn(4096, 128, device=card, requires_grad=True), torch.randn(96, 128, device=card)
    images, kernel = torch.randn(16, 64, 16, 16, device=card), torch.randn(64, 64, 3, 3, device=card)
    grad, feedback = torch.randn(4096, 96, device=card), Feedback("sign", scale=0.37)
    b = reference.feedback_weight(w, feedback).double()
    with bf.precision(products):
        out = feedback_linear(x, w, None, feedback, backend=backend)
        (down,) = torch.autograd.grad(out, x, grad)
        found = [out, down, F.conv2d(images, kernel, padding=1)]
    wanted = [
        x.double() @ w.double().T,
        grad.double() @ b,
        F.conv2d(images.double(), kernel.double(), padding=1),
    ]
    errors = [float((own - right).norm() / right.norm()) for own, right in zip(found, wanted, strict=True)]
    assert max(errors) < limit
    if products == "tf32" and torch.cuda.get_device_capability() >= (8, 0):
        assert errors[1] > IEEE / 10  # the error through B is not that of IEEE: the factors were rounded
