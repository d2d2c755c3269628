"""The architecture parameters of a supernet, and the mixing weights that they encode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from bionas_fast.errors import InputError, expect_count
from bionas_fast.kernels.tables import table
from bionas_fast.space import Genotype, Space, derive_genotype
from bionas_fast.space.candidates import SKIP

ALPHA_STD = 1e-3

#: The weight of every candidate on every edge, [edges, candidates], by kind of cell.
Mixing = Mapping[str, Tensor]


@dataclass(frozen=True)
class Mixture:
    """Options of the mixed ops of a supernet.

    Attributes:
        factorised: use one alpha per operation and one per rule, and add them, instead of one per candidate.
        edge_normalisation: also weight the edges into a node by a softmax (PC-DARTS, Xu et al. 2020).
        partial_channels: k; pass 1/k of the channels through the candidates. The others bypass them, and all are
            shuffled afterwards (PC-DARTS: k = 4).

    Raises:
        InputError: ``partial_channels`` below 1.
    """

    factorised: bool = False
    edge_normalisation: bool = False
    partial_channels: int = 1

    def __post_init__(self) -> None:
        expect_count("partial_channels", self.partial_channels)


class Architecture(nn.Module):
    """The architecture parameters: alphas and, with edge normalisation, betas.

    Attributes:
        alphas: one for each kind of cell, [edges, candidates]; factorised: two for each, ``KIND_operation``
            [edges, operations] and ``KIND_rule`` [edges, rules]. Drawn from N(0, 10⁻⁶).
        betas: one for each kind of cell, [edges], initially zero; none without edge normalisation.
    """

    def __init__(self, space: Space, mixture: Mixture) -> None:
        super().__init__()
        self.space, self.mixture = space, mixture
        edges = len(space.edges)
        self._factors = _factors(space)
        sizes = {"": len(space.candidates)}
        if mixture.factorised:
            sizes = {f"_{name}": len(set(levels)) for name, levels in self._factors.items()}
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
        """Compute the logits of the candidates, [edges, candidates] for each kind of cell."""
        if not self.mixture.factorised:
            return dict(self.alphas.items())
        return {
            kind: torch.stack([self._spread(kind, name) for name in self._factors]).sum(0) for kind in self.space.kinds
        }

    def _spread(self, kind: str, name: str) -> Tensor:
        """Select the logits of a factor for each candidate, [edges, candidates]."""
        alpha = self.alphas[f"{kind}_{name}"]
        return alpha.index_select(1, table(tuple(self._factors[name]), alpha.device))

    def edge_weights(self) -> dict[str, Tensor]:
        """Compute the softmax weights of the edges into each node, [edges] by kind of cell; empty without betas."""
        weights = {}
        for kind, beta in self.betas.items():
            weights[kind] = torch.zeros_like(beta)
            for node in range(self.space.nodes):
                rows = table(tuple(row for row, edge in enumerate(self.space.edges) if edge[0] == node), beta.device)
                weights[kind] = weights[kind].index_copy(0, rows, torch.softmax(beta[rows], dim=0))
        return weights

    def mixing(
        self, choose: Callable[[Tensor], Tensor] | None = None, auxiliary_skip: float = 0.0
    ) -> dict[str, Tensor]:
        """Compute the weights of the candidates, [edges, candidates] for each kind of cell.

        Args:
            choose: maps the logits of the candidates to their weights; by default the softmax.
            auxiliary_skip: added to the weight of the skip connections on every edge, divided equally among them
                (DARTS-, Chu et al. 2021).

        Raises:
            InputError: an auxiliary skip connection in a space without skip connections.
        """
        choose = choose or _softmax
        weights = {kind: choose(logits) for kind, logits in self.logits().items()}
        if auxiliary_skip:
            share = skip_share(self.space)
            weights = {
                kind: weight + auxiliary_skip * table(share, weight.device, weight.dtype)
                for kind, weight in weights.items()
            }
        for kind, edge_weights in self.edge_weights().items():
            weights[kind] = weights[kind] * edge_weights[:, None]
        return weights

    def mixings(self, vectors: Tensor, auxiliary_skip: float = 0.0) -> dict[str, Tensor]:
        """Compute :meth:`mixing` for other parameters, [P, edges, candidates] for each kind of cell.

        Args:
            vectors: [P, D], in each row all parameters, concatenated.
            auxiliary_skip: see :meth:`mixing`.
        """
        probe = copy.deepcopy(self)
        mixings = []
        for vector in vectors:
            vector_to_parameters(vector, probe.parameters())
            mixings.append(probe.mixing(auxiliary_skip=auxiliary_skip))
        return {kind: torch.stack([mixing[kind] for mixing in mixings]).detach() for kind in self.space.kinds}

    def genotype(self, fixed: Mapping[str, str]) -> Genotype:
        """Derive the discrete architecture encoded by the parameters."""
        return derive_genotype(self.logits(), self.space, fixed, edge_weights=self.edge_weights())


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=-1)


def skip_share(space: Space) -> tuple[float, ...]:
    """Distribute a weight of 1 equally over the skip connections; one number per candidate.

    Raises:
        InputError: the space has no skip connections.
    """
    skips = [candidate.operation == SKIP for candidate in space.candidates]
    if not any(skips):
        raise InputError(f"auxiliary_skip: space {space.name!r} has no {SKIP} under these restrictions")
    return tuple(skip / sum(skips) for skip in skips)


def _factors(space: Space) -> dict[str, list[int]]:
    """Return the operation index and the rule index of each candidate; without weights, the rule index is unique."""
    factors: dict[str, list[str | None]] = {
        "operation": [candidate.operation for candidate in space.candidates],
        "rule": [candidate.learning for candidate in space.candidates],
    }
    return {name: [list(dict.fromkeys(values)).index(v) for v in values] for name, values in factors.items()}
