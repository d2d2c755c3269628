"""The specification of the mixed sum in plain PyTorch, and of the sums its backward pass needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(maps: Sequence[Tensor], edges: Sequence[int], weight: Tensor, offset: Tensor) -> Tensor:
    """out[e] = Σ_{k of e} weight[k] · map_k + offset[e], channel by channel.

    Args:
        maps: stacks of maps [K_i, N, H, W, C], counted through in order.
        edges: the edge that each map belongs to.
        weight: [K, C].
        offset: [E, C].

    Returns:
        [E, N, H, W, C].
    """
    shape = maps[0].shape[1:]
    out = offset[:, None, None, None, :].expand(-1, *shape).clone()
    index = torch.tensor(edges, device=weight.device)
    first = 0
    for stack in maps:
        last = first + stack.shape[0]
        out.index_add_(0, index[first:last], stack * weight[first:last, None, None, None, :])
        first = last
    return out


def backward(maps: Sequence[Tensor], edges: Sequence[int], grad: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ grad[e], [E, C]; Σ grad[edge of k] · map_k, [K, C]) over positions, float64.

    Args:
        grad: [E, N, H, W, C].
    """
    index = torch.tensor(edges, device=grad.device)
    products, first = [], 0
    for stack in maps:
        last = first + stack.shape[0]
        products.append((grad[index[first:last]] * stack).double().sum(dim=(1, 2, 3)))
        first = last
    return grad.double().sum(dim=(1, 2, 3)), torch.cat(products)
