"""The architecture parameters of a supernet, and the mixing weights that they stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from bionas_fast.errors import InputError
from bionas_fast.space import Genotype, Space, derive_genotype

ALPHA_STD = 1e-3
SKIP = "skip_connect"

#: For each kind of cell the weight of every candidate on every edge, [edges, candidates].
Mixing = Mapping[str, Tensor]


@dataclass(frozen=True)
class Mixture:
    """What the mixed ops of a supernet are, beside the candidates.

    Attributes:
        factorised: alphas of the operations and of the rules, whose sum is a candidate's, in place of one each.
        edge_normalisation: a softmax over the edges into a node weights them, too (PC-DARTS, Xu et al. 2020).
        partial_channels: only 1/k of the channels pass the candidates; the others go around them, and are shuffled
            together with those that passed (PC-DARTS: k = 4).

    Raises:
        InputError: a k below 1.
    """

    factorised: bool = False
    edge_normalisation: bool = False
    partial_channels: int = 1

    def __post_init__(self) -> None:
        if self.partial_channels < 1:
            raise InputError(f"partial_channels: expected at least 1, got {self.partial_channels}")


class Architecture(nn.Module):
    """Alphas, and betas where edges are normalised.

    Attributes:
        alphas: one for each kind of cell, [edges, candidates]; factorised: two for each, ``KIND_operation``
            [edges, operations] and ``KIND_rule`` [edges, rules]. Drawn from N(0, 10⁻⁶).
        betas: one for each kind of cell, [edges], zero at first; none without edge normalisation.
    """

    def __init__(self, space: Space, mixture: Mixture) -> None:
        super().__init__()
        self.space, self.mixture = space, mixture
        edges = len(space.edges)
        self._factors = _factors(space)
        sizes = {f"_{name}": len(set(own)) for name, own in self._factors.items()}
        if not mixture.factorised:
            sizes = {"": len(space.candidates)}
        self.alphas = nn.ParameterDict(
            {
                kind + suffix: nn.Parameter(ALPHA_STD * torch.randn(edges, size))
                for kind in space.kinds
                for suffix, size in sizes.items()
            }
        )
        kinds = space.kinds if mixture.edge_normalisation else ()
        self.betas = nn.ParameterDict({kind: nn.Parameter(torch.zeros(edges)) for kind in kinds})

    def logits(self) -> dict[str, Tensor]:
        """For each kind of cell what the softmax over the candidates is taken of, [edges, candidates]."""
        if not self.mixture.factorised:
            return dict(self.alphas.items())
        return {
            kind: torch.stack([self.alphas[f"{kind}_{name}"][:, own] for name, own in self._factors.items()]).sum(0)
            for kind in self.space.kinds
        }

    def shares(self) -> dict[str, Tensor]:
        """For each kind of cell the weight of every edge among those into its node, [edges]; empty without betas."""
        nodes = torch.tensor([node for node, _ in self.space.edges])
        found = {}
        for kind, beta in self.betas.items():
            found[kind] = torch.zeros_like(beta)
            for node in range(self.space.nodes):
                rows = (nodes == node).nonzero().flatten().to(beta.device)
                found[kind] = found[kind].index_copy(0, rows, torch.softmax(beta[rows], dim=0))
        return found

    def mixing(
        self, choose: Callable[[Tensor], Tensor] | None = None, auxiliary_skip: float = 0.0
    ) -> dict[str, Tensor]:
        """The weights of the candidates, [edges, candidates] for each kind of cell.

        Args:
            choose: maps the logits of the candidates to their weights; by default the softmax.
            auxiliary_skip: added to the weight of the skip connections on every edge, in equal shares (DARTS-, Chu et
                al. 2021).
        """
        choose = choose or (lambda logits: torch.softmax(logits, dim=-1))
        weights = {kind: choose(logits) for kind, logits in self.logits().items()}
        if auxiliary_skip:
            extra = auxiliary_skip * skip_share(self.space)
            weights = {kind: own + extra.to(own) for kind, own in weights.items()}
        return {**weights, **{kind: weights[kind] * share[:, None] for kind, share in self.shares().items()}}

    def mixings(self, vectors: Tensor, auxiliary_skip: float = 0.0) -> dict[str, Tensor]:
        """What :meth:`mixing` would be for other parameters, [P, edges, candidates] for each kind of cell.

        Args:
            vectors: [P, D], each all parameters one after the other.
        """
        probe = copy.deepcopy(self)
        found = []
        for vector in vectors:
            vector_to_parameters(vector, probe.parameters())
            found.append(probe.mixing(auxiliary_skip=auxiliary_skip))
        return {kind: torch.stack([each[kind] for each in found]).detach() for kind in self.space.kinds}

    def genotype(self, fixed: Mapping[str, str]) -> Genotype:
        """The discrete architecture that the parameters stand for."""
        return derive_genotype(self.logits(), self.space, fixed, shares=self.shares())


def skip_share(space: Space) -> Tensor:
    """[candidates]: the skip connections' equal parts of 1.

    Raises:
        InputError: the space has none.
    """
    skips = torch.tensor([candidate.operation == SKIP for candidate in space.candidates])
    if not skips.any():
        raise InputError(f"auxiliary_skip: space {space.name!r} has no {SKIP} under these restrictions")
    return skips / skips.sum()


def _factors(space: Space) -> dict[str, list[int]]:
    """For each candidate the index of its operation, and of how it learns (without weights: one of its own)."""
    parts: dict[str, list[str | None]] = {
        "operation": [candidate.operation for candidate in space.candidates],
        "rule": [candidate.learning for candidate in space.candidates],
    }
    return {name: [list(dict.fromkeys(own)).index(value) for value in own] for name, own in parts.items()}
