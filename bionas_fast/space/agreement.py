"""Agreement of genotypes: the edges that they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

from bionas_fast.errors import InputError
from bionas_fast.space.edges import Edge
from bionas_fast.space.genotype import Genotype


@dataclass(frozen=True)
class Agreement:
    """The number of edges that all of several genotypes have in common.

    Attributes:
        edges: the edges of the smallest genotype, in all its cells.
        states: how many lead in all genotypes from the same state to the same node, whatever their operation.
        operations: how many of these have the same operation, too.
        candidates: how many have the same operation and rule.
    """

    edges: int
    states: int
    operations: int
    candidates: int

    @classmethod
    def of(cls, genotypes: Sequence[Genotype]) -> Agreement:
        """Count the common edges.

        Raises:
            InputError: no genotypes.
        """
        if not genotypes:
            raise InputError("genotypes: expected at least one")

        def common(detail: Callable[[Edge], Hashable]) -> int:
            return reduce(and_, (_count(genotype, detail) for genotype in genotypes)).total()

        return cls(
            edges=min(_count(genotype, lambda edge: None).total() for genotype in genotypes),
            states=common(lambda edge: None),
            operations=common(lambda edge: edge.candidate.operation),
            candidates=common(lambda edge: edge.candidate),
        )

    def __str__(self) -> str:
        return (
            f"{self.states} of {self.edges} edges, {self.operations} with the same operation, "
            f"{self.candidates} with the same operation and rule"
        )


def _count(genotype: Genotype, detail: Callable[[Edge], Hashable]) -> Counter[Hashable]:
    """Count the edges by cell, node, source and a detail; a node may have two edges from the same state."""
    return Counter(
        (kind, node, edge.source, detail(edge))
        for kind, cell in genotype.cells.items()
        for node, edges in enumerate(cell.nodes)
        for edge in edges
    )
