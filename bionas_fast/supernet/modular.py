"""The supernet with one module per candidate: slow, plain, and the oracle for every faster engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.space import Candidate, Genotype, Space, derive_genotype
from bionas_fast.space.cells import CellNetwork, PreprocessedCell
from bionas_fast.space.genotype import CELL_KINDS
from bionas_fast.space.operations import Zero

ALPHA_STD = 1e-3


def without_skip_rules(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """The same candidates with skip connections trained by back-propagation, as the published code has them."""
    return tuple(Candidate(c.operation, "bp") if c.operation == "skip_connect" else c for c in candidates)


class MixedOp(nn.Module):
    """All candidates of one edge, each with weights of its own, and their weighted sum."""

    def __init__(self, candidates: tuple[Candidate, ...], channels: int, stride: int) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(c.build(channels, stride, searching=True) for c in candidates)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """[N, C, H, W] → Σ_k weights[k] · candidate_k(x), [N, C, ⌈H/stride⌉, ⌈W/stride⌉]; weights [K]."""
        live = [k for k, module in enumerate(self.candidates) if not isinstance(module, Zero)]
        total = weights[live[0]] * self.candidates[live[0]](x)
        for k in live[1:]:
            total = total + weights[k] * self.candidates[k](x)
        return total


class SearchCell(PreprocessedCell):
    """A cell with every candidate on every edge; each node sums its edges, the output is all nodes side by side."""

    def __init__(
        self,
        space: Space,
        candidates: tuple[Candidate, ...],
        in_channels: tuple[int, int],
        channels: int,
        reduction: bool,
        previous_reduction: bool,
        rule: str,
        affine: bool,
    ) -> None:
        super().__init__(in_channels, channels, reduction, previous_reduction, rule, affine)
        self.space = space
        self.edges = nn.ModuleList(
            MixedOp(candidates, channels, 2 if reduction and source < 2 else 1) for _, source in space.edges
        )
        self.out_channels = space.nodes * channels

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """Outputs of the two preceding cells and the mixing weights [edges, candidates] → [N, nodes·C, H', W']."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        rows = iter(zip(self.edges, weights, strict=True))
        for node in range(self.space.nodes):
            total = None
            for state in states[: node + 2]:
                mixed_op, row = next(rows)
                out = mixed_op(state, row)
                total = out if total is None else total + out
            states.append(total)
        return torch.cat(states[2:], dim=1)


class ModularSupernet(CellNetwork):
    """The supernet of a space; see :func:`bionas_fast.build_supernet`.

    Attributes:
        alphas: ``{"normal", "reduce"}``, each [edges, candidates]; part of ``state_dict``, not of
            :meth:`weight_parameters`.
    """

    def __init__(
        self,
        space: Space,
        *,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int,
        fixed: Mapping[str, str],
        skip_rules: bool = True,
    ) -> None:
        candidates = space.candidates if skip_rules else without_skip_rules(space.candidates)
        super().__init__(
            partial(self._make_cell, space, candidates),
            channels=channels,
            cells=cells,
            num_classes=num_classes,
            in_channels=in_channels,
            fixed=fixed,
            affine=False,
        )
        self.space = space
        self.fixed = dict(fixed)
        shape = (len(space.edges), len(space.candidates))
        self.alphas = nn.ParameterDict({kind: nn.Parameter(ALPHA_STD * torch.randn(shape)) for kind in CELL_KINDS})

    @staticmethod
    def _make_cell(space: Space, candidates: tuple[Candidate, ...], *shape: Any) -> PreprocessedCell:
        return SearchCell(space, candidates, *shape)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] → logits [N, classes]."""
        self._check_input(x)
        weights = {kind: torch.softmax(alpha, dim=-1) for kind, alpha in self.alphas.items()}
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            assert isinstance(cell, PreprocessedCell)
            s0, s1 = s1, cell(s0, s1, weights[cell.kind])
        return self._classify(s1)

    def alpha_parameters(self) -> list[nn.Parameter]:
        """The architecture parameters."""
        return list(self.alphas.values())

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the architecture's."""
        own = {id(alpha) for alpha in self.alphas.values()}
        return (p for p in self.parameters() if id(p) not in own)

    def genotype(self) -> Genotype:
        """The discrete architecture that the present alphas stand for."""
        return derive_genotype(dict(self.alphas.items()), self.space, self.fixed)
