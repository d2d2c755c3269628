"""Derivation of a genotype from architecture parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bionas_fast.errors import InputError
from bionas_fast.space.candidates import NONE, Space
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.genotype import Genotype


def derive_genotype(
    alphas: Mapping[str, Tensor],
    space: Space,
    fixed: Mapping[str, str] | None = None,
    edges_per_node: int | None = None,
    edge_weights: Mapping[str, Tensor] | None = None,
) -> Genotype:
    """Derive the discrete cells that architecture parameters encode (DARTS, section 2.4).

    Each node keeps the edges with the largest softmax weight of a candidate other than ``none`` (ties: the smaller
    source), each with its best candidate other than ``none`` (ties: the first). In the skeleton of NAS-Bench-201 every
    edge takes its best candidate and is removed if that is ``none``.

    Args:
        alphas: for each kind of cell [edges, candidates] before the softmax.
        edges_per_node: number of edges that each node keeps; by default that of the skeleton.
        edge_weights: for each kind of cell [edges], factors of the candidate weights (PC-DARTS); 1 by default.
    """
    expected = (len(space.edges), len(space.candidates))
    keep = edges_per_node or space.skeleton.edges_per_node
    eligible = [k for k, c in enumerate(space.candidates) if keep is None or c.operation != NONE]

    def cell(kind: str) -> Cell:
        alpha = alphas[kind]
        if tuple(alpha.shape) != expected:
            raise InputError(
                f"alphas[{kind!r}] has shape {list(alpha.shape)}; space {space.name!r} has {list(expected)}"
            )
        if not torch.isfinite(alpha).all():
            raise InputError(f"alphas[{kind!r}] holds values that are not finite")
        weights = torch.softmax(alpha.detach().to("cpu", torch.float64), dim=-1)[:, eligible]
        best, choice = weights.max(dim=-1)  # max returns the first of equals
        if edge_weights:
            best = best * edge_weights[kind].detach().to(best)
        nodes = []
        for node in range(space.nodes):
            rows = [row for row, edge in enumerate(space.edges) if edge[0] == node]
            if keep is not None:
                rows = sorted(rows, key=lambda row: -best[row].item())[:keep]  # stable: smaller source first
            edges = (Edge(space.candidates[eligible[int(choice[row])]], space.edges[row][1]) for row in rows)
            nodes.append(tuple(edge for edge in edges if edge.candidate.operation != NONE))
        return Cell(tuple(nodes), space.output, space.skeleton)

    return Genotype(**{kind: cell(kind) for kind in space.kinds}, fixed=fixed)
