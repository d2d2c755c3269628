"""Random genotypes, mutations, and one-hot mixing weights of a genotype."""

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
    """Draw an architecture, as derived from i.i.d. random alphas: all architectures are equally likely."""
    shape = len(space.edges), len(space.candidates)
    return derive_genotype({kind: torch.randn(shape, generator=generator) for kind in space.kinds}, space, fixed)


def mutated(genotype: Genotype, space: Space, generator: torch.Generator) -> Genotype:
    """Return a copy with one edge changed (Real et al. 2019): another candidate or another source.

    Each is chosen with probability 1/2; if one is impossible, the other. In the NAS-Bench-201 skeleton the candidate is
    always changed, possibly to ``none``.
    """

    def pick(options: Sequence[T]) -> T:
        return options[int(torch.randint(len(options), (), generator=generator))]

    kind = pick(list(genotype.cells))
    cell = genotype.cells[kind]
    if space.skeleton.edges_per_node is None:
        node, source = pick(list(space.edges))
        by_source = {edge.source: edge for edge in cell.nodes[node]}
        current = by_source.pop(source).candidate if source in by_source else None
        candidate = pick(
            [c for c in space.candidates if c != current and not (current is None and c.operation == NONE)]
        )
        if candidate.operation != NONE:
            by_source[source] = Edge(candidate, source)
        edges = tuple(by_source[source] for source in sorted(by_source))
    else:
        node, k = pick([(i, k) for i, edges in enumerate(cell.nodes) for k in range(len(edges))])
        edge, used = cell.nodes[node][k], {e.source for e in cell.nodes[node]}
        sources = [source for other, source in space.edges if other == node and source not in used]
        others = [c for c in space.candidates if c.operation != NONE and c != edge.candidate]
        change_source = sources and (not others or pick([True, False]))
        new = Edge(edge.candidate, pick(sources)) if change_source else Edge(pick(others), edge.source)
        edges = (*cell.nodes[node][:k], new, *cell.nodes[node][k + 1 :])
    nodes = (*cell.nodes[:node], edges, *cell.nodes[node + 1 :])
    return Genotype(**{**genotype.cells, kind: replace(cell, nodes=nodes)}, fixed=genotype.fixed)


def one_hot(genotype: Genotype, space: Space) -> dict[str, Tensor]:
    """Encode a genotype as one-hot mixing weights, for each kind of cell [edges, candidates]."""
    candidates: list[Candidate] = list(space.candidates)
    weights = {}
    for kind, cell in genotype.cells.items():
        weights[kind] = torch.zeros(len(space.edges), len(candidates))
        for node, edges in enumerate(cell.nodes):
            for edge in edges:
                weights[kind][space.edges.index((node, edge.source)), candidates.index(edge.candidate)] = 1
    return weights
