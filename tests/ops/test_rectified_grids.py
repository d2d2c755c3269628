"""The grids of a factorized reduction: derivatives of every order, and transforms, against slices of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from bionas_fast.ops.factorized_reduce import rectified_grids
from helpers.tolerances import assert_close


def slices(x: Tensor) -> tuple[Tensor, Tensor]:
    height, width = x.shape[-2:]
    x = F.pad(F.relu(x), (0, width % 2, 0, height % 2))
    return x[:, :, ::2, ::2][:, :, : -(-height // 2), : -(-width // 2)], x[:, :, 1::2, 1::2]


def loss_of(run):
    return lambda x: torch.stack([(part * part.sin()).sum() for part in run(x)]).sum()


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (5, 7)], ids=str)
def test_second_derivatives_and_samples(size):
    torch.manual_seed(0)
    x = torch.randn(3, 2, *size, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    found = []
    for run in (rectified_grids, slices):
        (down,) = torch.autograd.grad(loss_of(run)(x), x, create_graph=True)
        found.append((*run(x), down, *torch.autograd.grad(down, x, direction)))
    for actual, wanted in zip(*found, strict=True):
        assert_close(actual, wanted)
    each = vmap(grad(lambda sample: loss_of(rectified_grids)(sample[None])))(x.detach())
    assert_close(each, torch.stack([grad(lambda s: loss_of(slices)(s[None]))(sample) for sample in x.detach()]))
