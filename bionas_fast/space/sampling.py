"""Random genotypes, mutations of them, and genotypes as mixing weights of a supernet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from bionas_fast.space.candidates import NONE, Candidate, Space
from bionas_fast.space.derive import derive_genotype
from bionas_fast.space.edges import Edge
from bionas_fast.space.genotype import Genotype

T = TypeVar("T")


def random_genotype(space: Space, generator: torch.Generator, fixed: Mapping[str, str] | None = None) -> Genotype:
    """Draw a genotype, every architecture of the space with the same probability, from alphas of equal distribution."""
    shape = len(space.edges), len(space.candidates)
    return derive_genotype({kind: torch.randn(shape, generator=generator) for kind in space.kinds}, space, fixed)


def mutated(genotype: Genotype, space: Space, generator: torch.Generator) -> Genotype:
    """Change one edge of an architecture (Real et al. 2019): another candidate, or another source.

    Either comes with probability 1/2; where a node has no further source, or its edge no further candidate, the other.
    Where every edge has a candidate (NAS-Bench-201) it is always that, ``none`` among them.
    """

    def pick(options: Sequence[T]) -> T:
        return options[int(torch.randint(len(options), (), generator=generator))]

    kind = pick(list(genotype.cells))
    cell = genotype.cells[kind]
    if space.skeleton.edges_per_node is None:
        node, source = pick(list(space.edges))
        present = {edge.source: edge for edge in cell.nodes[node]}
        now = present.pop(source).candidate if source in present else None
        candidate = pick([c for c in space.candidates if c != now and not (now is None and c.operation == NONE)])
        if candidate.operation != NONE:
            present[source] = Edge(candidate, source)
        edges = tuple(present[source] for source in sorted(present))
    else:
        node, k = pick([(i, k) for i, edges in enumerate(cell.nodes) for k in range(len(edges))])
        edge, used = cell.nodes[node][k], {e.source for e in cell.nodes[node]}
        sources = [source for other, source in space.edges if other == node and source not in used]
        others = [c for c in space.candidates if c.operation != NONE and c != edge.candidate]
        by_source = sources and (not others or pick([True, False]))
        new = Edge(edge.candidate, pick(sources)) if by_source else Edge(pick(others), edge.source)
        edges = (*cell.nodes[node][:k], new, *cell.nodes[node][k + 1 :])
    nodes = (*cell.nodes[:node], edges, *cell.nodes[node + 1 :])
    return Genotype(**{**genotype.cells, kind: replace(cell, nodes=nodes)}, fixed=genotype.fixed)


def one_hot(genotype: Genotype, space: Space) -> dict[str, Tensor]:
    """The mixing weights of a genotype: 1 for its candidates, 0 for the others, [edges, candidates] for each kind."""
    candidates: list[Candidate] = list(space.candidates)
    weights = {}
    for kind, cell in genotype.cells.items():
        weights[kind] = torch.zeros(len(space.edges), len(candidates))
        for node, edges in enumerate(cell.nodes):
            for edge in edges:
                weights[kind][space.edges.index((node, edge.source)), candidates.index(edge.candidate)] = 1
    return weights
