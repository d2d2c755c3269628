"""Worker process of the test of DistributedDataParallel in test_layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bionas_fast.nn import Conv2d, Linear


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        Conv2d(3, 4, 3, rule="kp"), nn.ReLU(), Conv2d(4, 4, 3, rule="brsf"), nn.Flatten(), Linear(64, 5, rule="fa")
    )


def train(model: nn.Module, half: slice) -> list[list[Tensor]]:
    """Three steps on a shard of a fixed batch; the gradients of every step."""
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator)
    optimizer, gradients = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x[half]), target[half]).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        optimizer.step()
    return gradients


def run(rank: int, folder: str) -> None:
    store = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = DistributedDataParallel(make_model(seed=rank))
    gradients = train(model, slice(4 * rank, 4 * rank + 4))
    torch.save({"gradients": gradients, "state": model.module.state_dict()}, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
