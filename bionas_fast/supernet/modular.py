"""The supernet with one module per candidate: slow, plain, and the oracle for every faster engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.errors import InputError
from bionas_fast.space import Candidate, Genotype, Space
from bionas_fast.space.cells import CellNetwork, PreprocessedCell
from bionas_fast.space.operations import Zero
from bionas_fast.supernet.architecture import Architecture, Mixing, Mixture


def without_skip_rules(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """The same candidates with skip connections trained by back-propagation, as the published code has them."""
    return tuple(Candidate(c.operation, "bp") if c.operation == "skip_connect" else c for c in candidates)


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
        self.around = around(stride)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """[N, C, H, W] → Σ_k weights[k] · candidate_k(x), [N, C, ⌈H/stride⌉, ⌈W/stride⌉]; weights [K]."""
        if self.partial_channels == 1:
            return self._sum(x, weights)
        passed = self._sum(x[:, : self.channels], weights)
        other = weights.sum() * self.around(x[:, self.channels :])
        return shuffle(torch.cat([passed, other], dim=1), self.partial_channels)

    def _sum(self, x: Tensor, weights: Tensor) -> Tensor:
        live = [k for k, module in enumerate(self.candidates) if not isinstance(module, Zero)]
        total = weights[live[0]] * self.candidates[live[0]](x)
        for k in live[1:]:
            total = total + weights[k] * self.candidates[k](x)
        return total


def around(stride: int) -> nn.Module:
    """What channels that no candidate sees pass."""
    return nn.Identity() if stride == 1 else nn.MaxPool2d(stride, ceil_mode=True)


def shuffle(x: Tensor, groups: int, dim: int = 1) -> Tensor:
    """The channels, along ``dim``, dealt out: one of each group, again and again (ShuffleNet, Zhang et al. 2018)."""
    return x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


class SearchCell(PreprocessedCell):
    """A cell with every candidate on every edge; each node sums its edges."""

    def __init__(
        self,
        space: Space,
        candidates: tuple[Candidate, ...],
        partial_channels: int,
        in_channels: tuple[int, ...],
        channels: int,
        reduction: bool,
        previous_reduction: bool,
        rule: str,
        affine: bool,
    ) -> None:
        super().__init__(space.skeleton, in_channels, channels, reduction, previous_reduction, rule, affine)
        self.space = space
        self.edges = nn.ModuleList(
            MixedOp(candidates, channels, self.stride(source), partial_channels) for _, source in space.edges
        )
        self.out_channels = len(space.output) * channels

    def forward(self, *inputs: Any) -> Tensor:
        """Outputs of the preceding cells, and the mixing weights [edges, candidates] → [N, out_channels, H', W']."""
        *outputs, weights = inputs
        states = self.first_states(outputs)
        rows = iter(zip(self.edges, weights, strict=True))
        for node in range(self.space.nodes):
            total: Any = None
            for state in states[: node + self.inputs]:
                mixed_op, row = next(rows)
                out = mixed_op(state, row)
                total = out if total is None else total + out
            states.append(total)
        return torch.cat([states[state] for state in self.space.output], dim=1)


class ModularSupernet(CellNetwork):
    """The supernet of a space; see :func:`bionas_fast.build_supernet`.

    Attributes:
        architecture: its parameters, part of ``state_dict``, not of :meth:`weight_parameters`.
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
        mixture: Mixture | None = None,
    ) -> None:
        mixture = mixture or Mixture()
        if channels % mixture.partial_channels:
            raise InputError(
                f"channels: expected a multiple of partial_channels {mixture.partial_channels}, got {channels}"
            )
        candidates = space.candidates if skip_rules else without_skip_rules(space.candidates)
        super().__init__(
            space.skeleton,
            partial(self._make_cell, space, candidates, mixture.partial_channels),
            channels=channels,
            cells=cells,
            num_classes=num_classes,
            in_channels=in_channels,
            fixed=fixed,
            affine=False,
        )
        self.space = space
        self.fixed = dict(fixed)
        self.architecture = Architecture(space, mixture)

    @staticmethod
    def _make_cell(
        space: Space, candidates: tuple[Candidate, ...], partial_channels: int, *shape: Any
    ) -> PreprocessedCell:
        return SearchCell(space, candidates, partial_channels, *shape)

    def forward(self, x: Tensor, mixing: Mixing | None = None) -> Tensor:
        """Images [N, in_channels, H, W] → logits [N, classes].

        Args:
            mixing: the weights of the candidates; by default those that the architecture parameters stand for.
        """
        self._check_input(x)
        weights = self.architecture.mixing() if mixing is None else mixing
        return self._classify(self._features(x, lambda cell, inputs: cell(*inputs, weights[cell.kind])))

    @torch.no_grad()
    def population(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Logits [P, N, classes] of P individuals, each with mixing weights of its own: one forward pass each.

        Args:
            x: images [N, in_channels, H, W].
            mixing: for each kind of cell [P, edges, candidates].

        Raises:
            InputError: in training mode, where an individual would move the statistics for the next.
        """
        self._check_population(mixing)
        count = len(mixing[self.space.kinds[0]])
        return torch.stack([self(x, {kind: own[i] for kind, own in mixing.items()}) for i in range(count)])

    def _check_population(self, mixing: Mixing) -> None:
        if self.training:
            raise InputError("a population is evaluated with fixed weights and statistics: call eval() first")
        wanted = [len(self.space.edges), len(self.space.candidates)]
        for kind in self.space.kinds:
            if kind not in mixing or mixing[kind].dim() != 3 or list(mixing[kind].shape[1:]) != wanted:
                got = list(mixing[kind].shape) if kind in mixing else "nothing"
                raise InputError(f"mixing[{kind!r}]: expected [individuals, {wanted[0]}, {wanted[1]}], got {got}")

    @property
    def alphas(self) -> nn.ParameterDict:
        """One for each kind of cell, [edges, candidates]; see :class:`Architecture` for factorised ones."""
        return self.architecture.alphas

    def alpha_parameters(self) -> list[nn.Parameter]:
        """The architecture parameters."""
        return list(self.architecture.parameters())

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the architecture's."""
        own = {id(alpha) for alpha in self.architecture.parameters()}
        return (p for p in self.parameters() if id(p) not in own)

    def genotype(self) -> Genotype:
        """The discrete architecture that the present alphas stand for."""
        return self.architecture.genotype(self.fixed)
