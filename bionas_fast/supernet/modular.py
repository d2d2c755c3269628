"""The supernet with one module per candidate: slow, plain, and the oracle for every faster engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bionas_fast.space import Candidate, Space
from bionas_fast.space.cells import CellShape
from bionas_fast.space.operations import Zero
from bionas_fast.supernet.architecture import Mixing
from bionas_fast.supernet.base import SearchCell, Supernet


class MixedOp(nn.Module):
    """All candidates of one edge, each with weights of its own, and their weighted sum.

    Args:
        partial_channels: k; the candidates see the first 1/k of the channels. The others are weighted like the edge as
            a whole, halved by max pooling, and shuffled together with those (PC-DARTS, section 3.1).
    """

    def __init__(
        self, candidates: tuple[Candidate, ...], channels: int, stride: int, partial_channels: int = 1
    ) -> None:
        super().__init__()
        self.channels, self.partial_channels = channels // partial_channels, partial_channels
        self.candidates = nn.ModuleList(c.build(self.channels, stride, searching=True) for c in candidates)
        self.bypass = bypass(stride)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """[N, C, H, W] → Σ_k weights[k] · candidate_k(x), [N, C, ⌈H/stride⌉, ⌈W/stride⌉]; weights [K]."""
        if self.partial_channels == 1:
            return self._sum(x, weights)
        passed = self._sum(x[:, : self.channels], weights)
        bypassed = weights.sum() * self.bypass(x[:, self.channels :])
        return shuffle(torch.cat([passed, bypassed], dim=1), self.partial_channels)

    def _sum(self, x: Tensor, weights: Tensor) -> Tensor:
        live = [k for k, module in enumerate(self.candidates) if not isinstance(module, Zero)]
        total = weights[live[0]] * self.candidates[live[0]](x)
        for k in live[1:]:
            total = total + weights[k] * self.candidates[k](x)
        return total


def mixed_ops(cell: SearchCell) -> list[MixedOp]:
    """Fresh mixed ops for a cell, one an edge."""
    channels, candidates = cell.shape.channels, cell.space.candidates
    return [MixedOp(candidates, channels, cell.stride(source), cell.partial_channels) for _, source in cell.space.edges]


def bypass(stride: int) -> nn.Module:
    """The path of the channels that bypass the candidates (PC-DARTS): identity, or max pooling at stride 2."""
    return nn.Identity() if stride == 1 else nn.MaxPool2d(stride, ceil_mode=True)


def shuffle(x: Tensor, groups: int, dim: int = 1) -> Tensor:
    """Deal the channels, along ``dim``, out: one of each group, again and again (ShuffleNet, Zhang et al. 2018)."""
    return x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


class ModularCell(SearchCell):
    """A cell with a mixed op on every edge."""

    def __init__(self, space: Space, partial_channels: int, shape: CellShape) -> None:
        super().__init__(space, partial_channels, shape)
        self.edges = nn.ModuleList(mixed_ops(self))

    def forward(self, inputs: Sequence[Tensor], mixing: Tensor) -> Tensor:
        """See :class:`SearchCell`."""
        states = self.preprocess(inputs)
        edges = iter(zip(self.edges, mixing, strict=True))
        for node in range(self.space.nodes):
            total: Tensor | None = None
            for state in states[: node + self.inputs]:
                mixed_op, weights = next(edges)
                total = add(total, mixed_op(state, weights))
            assert total is not None
            states.append(total)
        return torch.cat([states[state] for state in self.space.output], dim=1)


def add(total: Tensor | None, more: Tensor) -> Tensor:
    """The sum so far, which may be none, and one more."""
    return more if total is None else total + more


class ModularSupernet(Supernet):
    """The supernet with one module per candidate; see :func:`bionas_fast.build_supernet`."""

    cell_type = ModularCell

    @torch.no_grad()
    def population(self, x: Tensor, mixing: Mixing) -> Tensor:
        """See :meth:`Supernet.population`: one forward pass each."""
        individuals = self._check_population(mixing)
        return torch.stack([self(x, {kind: own[i] for kind, own in mixing.items()}) for i in range(individuals)])
