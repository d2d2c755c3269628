"""The supernet with one module per candidate: simple, slow, and the reference of the stacked engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bionas_fast.space import Space
from bionas_fast.space.cells import CellShape
from bionas_fast.supernet.architecture import Mixing
from bionas_fast.supernet.base import SearchCell, Supernet
from bionas_fast.supernet.mixed_op import add, mixed_ops


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


class ModularSupernet(Supernet):
    """The supernet with one module per candidate; see :func:`bionas_fast.build_supernet`."""

    cell_type = ModularCell

    @torch.no_grad()
    def population(self, x: Tensor, mixing: Mixing) -> Tensor:
        """See :meth:`Supernet.population`; one forward pass per individual."""
        individuals = self._check_population(mixing)
        return torch.stack([self(x, {kind: own[i] for kind, own in mixing.items()}) for i in range(individuals)])
