"""Compare settings of the default search: do its architecture parameters move, and do seeds agree?

``python experiments/search_defaults.py --settings '' --settings 'alpha_learning_rate=0.03 epochs=8'`` prints a table in
Markdown, a row for each: the edges that the genotypes of two seeds share (the same source, operation and rule), also
with the rule left out, beside what genotypes share whose candidates are drawn from those of all seeds; the largest
softmax weight and its lead over the second, means over all edges; the share of skip connections and poolings; the
epochs since the last change of the genotype; and the processor time of a search.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

import bionas_fast as bf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", action="append", required=True, metavar="'NAME=VALUE NAME=VALUE'")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    columns = (
        *("settings", "edges of two seeds, shared", "by chance", "operations, shared", "by chance"),
        *("largest weight %", "lead %", "without weights %", "stable epochs", "validation %", "core-seconds"),
    )
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for text in given.settings:
        settings = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in text.split())}
        print("| " + " | ".join((text or "defaults", *row(settings, given.seeds))) + " |", flush=True)


def row(settings: dict[str, object], seeds: int) -> list[str]:
    results, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            began = time.process_time()
            results.append(bf.search(bf.SearchConfig(seed=seed, **settings), out=Path(folder) / str(seed)))
            seconds.append(time.process_time() - began)
        alphas = [result.alphas for result in results]
        stable = [stability([row["genotype"] for row in result.metrics]) for result in results]
    genotypes = [edges(result.genotype) for result in results]
    weights = [softmax(kinds[kind][-1]) for kinds in alphas for kind in kinds]
    ordered = [np.sort(each, axis=-1) for each in weights]
    free = [operation for found in genotypes for *_, operation, rule in found if rule is None]
    numbers = (
        shared(genotypes),
        chance(genotypes),
        shared([{(*place, operation) for *place, operation, _ in found} for found in genotypes]),
        chance([{(*place, operation) for *place, operation, _ in found} for found in genotypes]),
        100 * float(np.mean([each[..., -1].mean() for each in ordered])),
        100 * float(np.mean([(each[..., -1] - each[..., -2]).mean() for each in ordered])),
        100 * len(free) / sum(map(len, genotypes)),
        statistics.mean(stable),
        statistics.mean(result.final_metrics["valid_accuracy"] for result in results),
        statistics.median(seconds),
    )
    return [f"{number:.3g}" for number in numbers]


def edges(genotype: bf.Genotype) -> set[tuple]:
    """Return the edges of a genotype: kind of cell, node, source, operation, rule."""
    return {
        (kind, node, edge.source, edge.candidate.operation, edge.candidate.rule)
        for kind, cell in genotype.cells.items()
        for node, into in enumerate(cell.nodes)
        for edge in into
    }


def shared(found: Sequence[set[tuple]]) -> float:
    """Return the mean number of edges that two of the genotypes share."""
    return statistics.mean(len(a & b) for a, b in itertools.combinations(found, 2))


def chance(found: Sequence[set[tuple]], draws: int = 200) -> float:
    """Return what two genotypes share whose sources are random, with candidates drawn from those of all genotypes."""
    generator = np.random.default_rng(0)
    ends = [edge[3:] for each in found for edge in sorted(each, key=str)]

    def shuffled(each: set[tuple]) -> set[tuple]:
        drawn = set()
        for kind, node in {edge[:2] for edge in each}:
            own = [edge for edge in each if edge[:2] == (kind, node)]
            sources = generator.choice(node + 2, size=min(len(own), node + 2), replace=False)
            drawn |= {(kind, node, int(source), *ends[generator.integers(len(ends))]) for source in sources}
        return drawn

    return statistics.mean(
        len(shuffled(a) & shuffled(b)) for _ in range(draws) for a, b in itertools.combinations(found, 2)
    )


def softmax(alphas: np.ndarray) -> np.ndarray:
    powers = np.exp(alphas.astype(np.float64) - alphas.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def stability(hashes: Sequence[str]) -> int:
    """Count the last epochs with the final genotype."""
    return len(list(itertools.takewhile(lambda each: each == hashes[-1], reversed(hashes))))


if __name__ == "__main__":
    main()
