"""Searches by two processes over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bionas_fast.errors import InputError
from bionas_fast.nn.batch_norm import SyncedBatchNorm2d, synchronise_statistics
from bionas_fast.runs.execution import execute
from bionas_fast.runs.progress import Progress
from bionas_fast.runtime import distributed
from bionas_fast.searching import Search, search
from bionas_fast.space import register_space
from helpers import distributed_worker
from helpers.registries import restored


def call(function, folder):
    return f"from pathlib import Path; from helpers import distributed_worker as w; w.{function}(Path({str(folder)!r}))"


@pytest.fixture(scope="module", autouse=True)
def _space():
    with restored():
        register_space(distributed_worker.SPACE)(distributed_worker.two_nodes)
        yield


@pytest.fixture(scope="module")
def shared(forked, tmp_path_factory):
    """The runs of two processes."""
    folder = tmp_path_factory.mktemp("shared")
    done = forked.program(call("run", folder), processes=2)
    assert done.code == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", distributed_worker.CASES)
def test_two_processes_search_as_one_does(case, shared, tmp_path):
    """The same global batches: the same alphas, weights and statistics but for rounding."""
    config = distributed_worker.CASES[case]
    search(config, out=tmp_path / "one")
    one, two = (np.load(folder / "alphas.npz") for folder in (tmp_path / "one", shared / case))
    for kind in ("normal", "reduce"):
        moved = np.abs(one[kind][-1] - one[kind][0]).max()
        assert moved > 1e-4
        # Adam divides by the size of the gradient, and so turns rounding of small ones into parts of a step of 3e-4.
        assert np.abs(one[kind] - two[kind]).max() < 1e-2 * moved
    states = [
        torch.load(folder / "checkpoint.pt", weights_only=True)["net"] for folder in (tmp_path / "one", shared / case)
    ]
    for name, own in states[0].items():
        error = (own.double() - states[1][name].double()).abs().max().item() if own.numel() else 0
        assert error < 1e-4 * max(1, own.double().abs().max().item()), name
    rows = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        for folder in (tmp_path / "one", shared / case)
    ]
    assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=1e-4)
    assert rows[0]["train_accuracy"] == rows[1]["train_accuracy"]


def test_a_dead_process_ends_the_other_with_a_checkpoint(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [distributed_worker.__file__, tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    folder = tmp_path / "dead"
    assert "another process of this run has ended" in ended.stderr
    assert f"resume with: bionas-fast search --resume {folder}" in ended.stderr
    assert '__main__.py", line' not in ended.stderr
    # What was saved before is whole, and one process ends the search as one that was never stopped.
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    # The last step before the end is saved, unless its messages did not get through any more.
    assert state["epoch"] == 1
    assert state["tally"]["steps"] in (0, 1)
    whole = search(distributed_worker.BASE, out=tmp_path / "whole")
    resumed = search(resume=folder)
    alphas = [np.load(found.run_dir / "alphas.npz")["normal"] for found in (whole, resumed)]
    moved = np.abs(alphas[0][-1] - alphas[0][0]).max()
    assert np.abs(alphas[0] - alphas[1]).max() < 1e-2 * moved


def test_what_is_wrong_with_one_process_is_said_once(forked, tmp_path):
    refused = forked.program(call("blind", tmp_path), processes=2)
    assert refused.code != 0
    assert refused.stderr.count("error: process 1: digits: not on this machine") == 1
    assert "another process" not in refused.stderr
    assert not (tmp_path / "blind").exists()


def test_the_command_in_two_processes(forked, tmp_path):
    """Prints once, resumes, trains, and refuses a batch that cannot be divided, once."""
    words = ["search", "--channels", "1", "--cells", "1", "--epochs", "1", "--dataset", distributed_worker.BASE.dataset]
    words += ["--rules", "usf", "--ops", "skip_connect,max_pool_3x3"]
    refused = forked(*words, "--batch-size", "31", "--out", tmp_path / "odd", processes=2)
    assert refused.stderr.count("a batch of 31 images cannot be divided evenly among 2 processes") == 1
    done = forked(*words, "--out", tmp_path / "run", processes=2)
    assert done.code == 0, done.stderr[-3000:]
    assert done.stdout.count("validation accuracy") == 1
    again = forked("search", "--resume", tmp_path / "run", processes=2)
    assert again.code == 0, again.stderr[-3000:]
    assert again.stdout.count("validation accuracy") == 1
    for source in (tmp_path / "run", "resnet20"):
        words = ["--epochs", "1", "--dataset", distributed_worker.BASE.dataset]
        run = forked("train", source, *words, "--out", tmp_path / f"of-{Path(source).name}", processes=2)
        assert run.code == 0, run.stderr[-3000:]
        assert run.stdout.count("test accuracy") == 1


def test_a_single_process_changes_nothing():
    assert not distributed.active()
    x, y = torch.randn(3, 2), torch.arange(3)
    assert distributed.shard(x, y)[0] is x
    assert distributed.all_reduce_sum(1.5, 2) == [1.5, 2]
    assert distributed.broadcast("a") == "a"
    assert distributed.all_gather(x) is x
    assert distributed.synchroniser() is None
    synced, plain = SyncedBatchNorm2d(4), nn.BatchNorm2d(4)
    images = torch.randn(3, 4, 5, 5)
    assert torch.equal(synced(images), plain(images))
    network = nn.Sequential(plain)
    synchronise_statistics(network, None)
    assert network[0] is plain


def test_synchronised_layers_keep_parameters_and_names():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)).eval()
    before = dict(network.named_parameters())
    state = network.state_dict()
    synchroniser = Sums()
    synchronise_statistics(network, synchroniser)
    assert all(isinstance(layer, SyncedBatchNorm2d) and not layer.training for layer in network[1:])
    assert all(layer.synchroniser is synchroniser for layer in network[1:])
    assert all(own is before[name] for name, own in network.named_parameters())
    assert [*network.state_dict()] == [*state]


@dataclass
class Sums:
    """Stands for two processes: a sum of both is the one that ``value`` says, or what is sent is written down."""

    value: Tensor | None = None
    sent: list[Tensor] = field(default_factory=list)
    world_size: int = 2

    def sum_in_place(self, tensor: Tensor) -> None:
        self.sent.append(tensor.clone())
        if self.value is not None:
            tensor.copy_(self.value)


def test_synced_batch_norm_is_that_of_the_whole_batch():
    """Two processes in turn, their sums added up by hand: values, gradients and statistics of nn.BatchNorm2d."""
    torch.manual_seed(0)
    x, upstream = torch.randn(6, 4, 3, 5, dtype=torch.float64), torch.randn(6, 4, 3, 5, dtype=torch.float64)
    whole = nn.BatchNorm2d(4).double()
    with torch.no_grad():
        whole.weight.uniform_(0.5, 2)
        whole.bias.uniform_(-1, 1)
    expected_in = x.clone().requires_grad_()
    expected = whole(expected_in)
    expected.backward(upstream)

    halves = [slice(0, 3), slice(3, 6)]
    forward = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    inputs, outs = [], []
    layers = []

    processes = Sums(forward)
    for half in halves:
        layer = SyncedBatchNorm2d(4).double()
        layer.load_state_dict(nn.BatchNorm2d(4).state_dict())
        layer.synchroniser = processes
        with torch.no_grad():
            layer.weight.copy_(whole.weight)
            layer.bias.copy_(whole.bias)
        inputs.append(x[half].clone().requires_grad_())
        outs.append(layer(inputs[-1]))
        layers.append(layer)
    # The tensors that both backward passes send through the sums, added up.
    processes.value, processes.sent = None, []
    for out, own, half in zip(outs, inputs, halves, strict=True):
        torch.autograd.grad(out, own, upstream[half], retain_graph=True)
    processes.value = sum(processes.sent)
    grads = [
        torch.autograd.grad(out, (own, layer.weight, layer.bias), upstream[half])
        for out, own, layer, half in zip(outs, inputs, layers, halves, strict=True)
    ]
    torch.testing.assert_close(torch.cat(outs), expected)
    torch.testing.assert_close(torch.cat([g[0] for g in grads]), expected_in.grad)
    torch.testing.assert_close(grads[0][1] + grads[1][1], whole.weight.grad)
    torch.testing.assert_close(grads[0][2] + grads[1][2], whole.bias.grad)
    torch.testing.assert_close(layers[0].running_mean, whole.running_mean)
    torch.testing.assert_close(layers[1].running_var, whole.running_var)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(amp, tmp_path):
    """Learns, differs from float32 by rounding, keeps weights float32, and resumes from its state."""
    config = distributed_worker.BASE.with_settings(cells=1, dataset="digits", train_fraction=0.2)
    exact = search(config, out=tmp_path / "off")
    mixed = search(config.with_settings(amp=amp), out=tmp_path / amp)
    losses = [found.metrics[-1]["train_loss"] for found in (exact, mixed)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    state = torch.load(tmp_path / amp / "checkpoint.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in state["net"].values() if value.is_floating_point())


def test_a_step_that_overflows_is_left_out():
    """It changes no weight, and the mean loss is that of the others."""
    config = distributed_worker.BASE.with_settings(cells=1, amp="fp16", method="random")
    trainer = Search(config)
    with trainer.isolated_rng():
        trainer.enter_epoch()
        finite = trainer.step()
        before = {name: value.clone() for name, value in trainer.net.named_parameters()}
        with torch.no_grad():
            trainer.net.classifier.bias[0] = float("inf")
        assert trainer.step() is None
        for name, value in trainer.net.named_parameters():
            assert name == "classifier.bias" or torch.equal(value, before[name])
        with torch.no_grad():
            trainer.net.classifier.bias.copy_(before["classifier.bias"])
    trainer._tally.steps = len(trainer.phase.batches)
    row = trainer.end_epoch()
    assert row["train_loss"] == pytest.approx(finite)


def test_losses_that_no_scale_helps_end_the_search(tmp_path):
    # One epoch has more steps than the scale has powers of two.
    config = distributed_worker.BASE.with_settings(cells=1, amp="fp16", batch_size=2)
    broken = Search(config)
    broken.net.classifier.weight.data.fill_(float("inf"))
    with pytest.raises(InputError, match=r"however losses are scaled, is not finite in epoch \d+"):
        execute(broken, None, Progress())


def test_unknown_precision():
    with pytest.raises(InputError, match="amp: input should be 'off', 'bf16' or 'fp16'"):
        distributed_worker.BASE.with_settings(amp="half")
