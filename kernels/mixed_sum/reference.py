"""The specification of the mixed sum in plain PyTorch, and of the sums its backward pass needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(
    maps: Sequence[Tensor],
    index: Sequence[int],
    edges: Sequence[int],
    weight: Tensor,
    offset: Tensor,
    into: Sequence[Tensor] = (),
) -> list[Tensor]:
    """out[e] = Σ_{terms t of e} weight[t] · map[index[t]] + offset[e] + into[e], channel by channel.

    Args:
        maps: stacks of maps [K_i, N, H, W, C], counted through in order.
        index: the map that each of the T terms reads.
        edges: the sum that each term belongs to, ascending.
        weight: [T, C].
        offset: [E, C].
        into: E tensors [N, H, W, C] to add, or none.

    Returns:
        E tensors [N, H, W, C].
    """
    each = [one for stack in maps for one in stack]
    out = []
    for e, value in enumerate(offset):
        total = value.expand_as(each[0]) + (into[e] if into else 0)
        for t, edge in enumerate(edges):
            if edge == e:
                total = total + weight[t] * each[index[t]]
        out.append(total)
    return out


def backward(
    maps: Sequence[Tensor], index: Sequence[int], edges: Sequence[int], grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(Σ grad[e], [E, C]; Σ grad[edges[t]] · map[index[t]], [T, C]) over positions, float64.

    Args:
        grads: E tensors [N, H, W, C].
    """
    each = [one for stack in maps for one in stack]
    products = [(grads[e] * each[k]).double().sum(dim=(0, 1, 2)) for k, e in zip(index, edges, strict=True)]
    return torch.stack([grad.double().sum(dim=(0, 1, 2)) for grad in grads]), torch.stack(products)
