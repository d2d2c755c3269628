"""What a learning rule costs in a network of one's own: a training step of ResNet-20, converted, next to torch.nn."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.backends import explain
from bionas_fast.ops.feedback import Feedback, feedback_conv
from measuring import interleaved, printed, relative, show

RULES = bf.rules.names()


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.widening = stride, outputs - inputs

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.widening))
        return F.relu(out + shortcut)


def resnet20() -> nn.Module:
    """ResNet-20 for 32×32 images (He et al. 2016, section 4.2), shortcuts without weights."""
    blocks, inputs = [], 16
    for outputs in (16, 32, 64):
        for _ in range(3):
            blocks.append(Block(inputs, outputs, 2 if outputs != inputs else 1))
            inputs = outputs
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet20_times(device: str, batch: int) -> dict[str, float]:
    """Seconds of a training step, SGD with momentum and weight decay, of the plain network and the converted ones."""
    torch.manual_seed(0)
    plain = resnet20().to(device)
    x, y = torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    networks = {"torch.nn": plain} | {rule: bf.convert(copy.deepcopy(plain), rule=rule) for rule in RULES}

    def step(network):
        # So small a rate leaves the networks what they are.
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-4)

        def run():
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()

        return run

    with torch.no_grad():
        expected = plain.eval()(x)
        for network in networks.values():
            assert relative(network.eval()(x), expected) < 1e-4
    for network in networks.values():
        network.train()
    return interleaved({name: step(network) for name, network in networks.items()}, rounds=15)


@pytest.mark.parametrize("batch", [64, 128])
def test_resnet20(benchmark, report, device, batch):
    """The published batch of 128 images, and half of it."""
    # In a process whose C library keeps what is freed. Networks that take turns otherwise pay, by chance, for the pages
    # that another gave back; in a training of its own each finds those of its last step.
    kept = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
    program = f"import json, test_feedback_layers as t; print(json.dumps(t.resnet20_times({device!r}, {batch})))"
    times = benchmark.pedantic(lambda: json.loads(printed(program, **kept)), rounds=1)
    for rule in RULES:
        report.add(
            f"training step of ResNet-20, {batch} images, on {device}, {rule}",
            f"{times[rule] / times['torch.nn']:6.3f} of torch.nn ({1e3 * times[rule]:.1f} ms) [at most 1.05]",
        )


@pytest.mark.parametrize("mode", ["sign", "stored_sign", "drawn_sign"])
def test_convolution_backends(benchmark, report, device, mode):
    """Forward and backward of one dense convolution under each backend."""
    x = torch.randn(32, 64, 16, 16, device=device, requires_grad=True)
    weight = torch.randn(64, 64, 3, 3, device=device, requires_grad=True)
    feedback = Feedback(mode, torch.randn_like(weight).detach(), torch.tensor([7, 0], device=device), 0.1, 0.05)

    def step(backend):
        def run():
            out = feedback_conv(x, weight, None, feedback, padding=1, backend=backend)
            return torch.autograd.grad(out, (x, weight), out)

        return run

    backends = {explain("feedback_conv", device).backend, "reference"}
    steps = {backend: step(backend) for backend in sorted(backends)}
    for run in steps.values():
        for ours, theirs in zip(run(), steps["reference"](), strict=True):
            assert relative(ours, theirs) < 1e-4
    times = interleaved(steps, rounds=9)
    report.ratios(f"feedback_conv 64→64 3×3 {mode} on {device}", times, "reference")
    show(benchmark, steps[sorted(backends)[0]], min(times.values()))
