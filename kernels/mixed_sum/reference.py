"""The specification of the mixed sum in plain PyTorch, and of the sums of its backward pass.

Maps are stored in stacks [K_i, N, H, W, C]; terms refer to them by their index in the concatenation of the stacks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..records import Terms


def forward(
    maps: Sequence[Tensor], terms: Terms, weight: Tensor, offset: Tensor, into: Sequence[Tensor | None]
) -> list[Tensor]:
    """Compute out[e] = Σ_{terms t of e} weight[t] · map[index[t]] + offset[e] + into[e], per channel.

    Args:
        maps: the stacks.
        weight: [T, C].
        offset: [E, C].
        into: a tensor [N, H, W, C] or None for each edge.

    Returns:
        E tensors [N, H, W, C].
    """
    each = [one for stack in maps for one in stack]
    out = []
    for e, (value, before) in enumerate(zip(offset, into, strict=True)):
        total = value.expand_as(each[0]) + (0 if before is None else before)
        for t, edge in enumerate(terms.edges):
            if edge == e:
                total = total + weight[t] * each[terms.index[t]]
        out.append(total)
    return out


def backward(grads: Sequence[Tensor], maps: Sequence[Tensor], terms: Terms) -> tuple[Tensor, Tensor]:
    """Compute (Σ grad[e], [E, C]; Σ grad[edges[t]] · map[index[t]], [T, C]) over positions, float64.

    Args:
        grads: E tensors [N, H, W, C].
        maps: the stacks.
    """
    each = [one for stack in maps for one in stack]
    pairs = zip(terms.index, terms.edges, strict=True)
    products = [(grads[e] * each[k]).double().sum(dim=(0, 1, 2)) for k, e in pairs]
    return torch.stack([grad.double().sum(dim=(0, 1, 2)) for grad in grads]), torch.stack(products)
