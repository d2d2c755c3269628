"""Composition of genotypes, and the entropy of a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bionas_fast.space import Genotype


def composition(genotypes: Sequence[Genotype]) -> list[dict[str, object]]:
    """Count the operations and rules of genotypes, by kind of cell and depth.

    Args:
        genotypes: architectures of one search space, such as those of several seeds.

    Returns:
        One row for each kind of cell, node, operation and rule that occurs: ``cell``, ``node`` (as in the JSON),
        ``operation``, ``rule`` (None without weights), ``count``, and ``share`` of the edges into that node.
    """
    counts: dict[tuple[str, int, str, str | None], int] = {}
    totals: dict[tuple[str, int], int] = {}
    for genotype in genotypes:
        for kind, cell in genotype.cells.items():
            for node, edges in enumerate(cell.nodes, len(cell.skeleton.input_names)):
                for edge in edges:
                    key = (kind, node, edge.candidate.operation, edge.candidate.rule)
                    counts[key] = counts.get(key, 0) + 1
                    totals[kind, node] = totals.get((kind, node), 0) + 1
    return [
        {
            "cell": kind,
            "node": node,
            "operation": operation,
            "rule": rule,
            "count": count,
            "share": count / totals[kind, node],
        }
        for (kind, node, operation, rule), count in sorted(counts.items(), key=lambda item: (item[0][:3], -item[1]))
    ]


def alpha_entropy(alphas: np.ndarray) -> np.ndarray:
    """Compute the entropy of the softmax over candidates in bits, and its mean over edges.

    Args:
        alphas: [epochs + 1, edges, candidates].

    Returns:
        [epochs + 1]: log2(candidates) for equal weights, towards 0 as each edge decides for one candidate.
    """
    shifted = alphas.astype(np.float64) - alphas.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    logs = shifted - log_sum
    return -(np.exp(logs) * logs).sum(axis=-1).mean(axis=-1) / np.log(2)
