"""The extent to which a search has decided: leads of the chosen candidates, epochs without a change of the genotype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from bionas_fast.space.candidates import NONE, Candidate, Space
from bionas_fast.space.genotype import Genotype

#: The ratio of the softmax weights of first and second candidate from which an edge counts as decided.
DECIDED = 1.1


@dataclass(frozen=True)
class Lead:
    """The lead of a chosen candidate over the best other one on its edge.

    Attributes:
        kind: the kind of cell.
        node: the node that the edge leads to, from 0.
        source: the state that it comes from.
        candidate: the chosen candidate.
        weight: its softmax weight.
        second: the best other candidate that could have been chosen.
        second_weight: the softmax weight of that one.
    """

    kind: str
    node: int
    source: int
    candidate: Candidate
    weight: float
    second: Candidate
    second_weight: float

    @property
    def ratio(self) -> float:
        """The weight over that of the second; the exponential of the difference of their alphas."""
        return self.weight / self.second_weight


@dataclass(frozen=True)
class Decision:
    """The extent to which a search has decided.

    Attributes:
        leads: the lead on every edge of the genotype; empty if the genotype does not come from alphas.
        stable: for how many of the last epochs the genotype has been the same, the last included.
        epochs: the number of epochs.
    """

    leads: tuple[Lead, ...]
    stable: int
    epochs: int

    @classmethod
    def of(
        cls,
        genotype: Genotype,
        hashes: Sequence[str],
        space: Space | None = None,
        alphas: Mapping[str, np.ndarray] | None = None,
    ) -> Decision:
        """Compare the candidates on the edges of a genotype.

        Args:
            genotype: the genotype of the search.
            hashes: the hash of the genotype after every epoch up to that from which it is taken.
            space: the edges and candidates of ``alphas``.
            alphas: for each kind of cell [edges, candidates] before the softmax, from which the genotype is derived;
                None if it comes from a population.
        """
        stable = sum(1 for _ in takewhile(lambda each: each == hashes[-1], reversed(hashes)))
        leads = () if space is None or alphas is None else tuple(_leads(genotype, space, alphas))
        return cls(leads, stable, len(hashes))

    @property
    def ratios(self) -> tuple[float, ...]:
        """The lead on every edge of the genotype, as the weight of the candidate over that of the second."""
        return tuple(lead.ratio for lead in self.leads)

    @property
    def decided(self) -> int:
        """The number of edges whose candidate has 1.1 times the weight of the second, or more."""
        return sum(lead.ratio >= DECIDED for lead in self.leads)

    @property
    def undecided(self) -> bool:
        """Whether fewer than half of the edges are decided, after the first epoch."""
        return self.epochs > 0 and 2 * self.decided < len(self.leads)

    def __str__(self) -> str:
        same = f"genotype unchanged for {self.stable} of {self.epochs} epochs"
        if not self.leads:
            return same
        percent = 100 * (DECIDED - 1)
        return f"{self.decided} of {len(self.leads)} edges lead by {percent:.0f} % or more; {same}"


def _leads(genotype: Genotype, space: Space, alphas: Mapping[str, np.ndarray]) -> list[Lead]:
    found = []
    rows = {edge: row for row, edge in enumerate(space.edges)}
    # Derivation in DARTS cells leaves `none` out (space/derive.py).
    eligible = [
        k for k, own in enumerate(space.candidates) if space.skeleton.edges_per_node is None or own.operation != NONE
    ]
    for kind, cell in genotype.cells.items():
        alpha = alphas[kind].astype(np.float64)
        weights = np.exp(alpha - alpha.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        for node, edges in enumerate(cell.nodes):
            for edge in edges:
                own = weights[rows[node, edge.source]]
                # A network whose skip connections have no rule has another candidate than the search.
                alike = [k for k in eligible if space.candidates[k].operation == edge.candidate.operation]
                same = [k for k in alike if space.candidates[k].learning == edge.candidate.learning]
                chosen = max(same or alike, key=lambda k: own[k])
                second = max((k for k in eligible if k != chosen), key=lambda k: own[k], default=chosen)
                found.append(
                    Lead(
                        *(kind, node, edge.source, space.candidates[chosen], float(own[chosen])),
                        *(space.candidates[second], float(own[second])),
                    )
                )
    return found
