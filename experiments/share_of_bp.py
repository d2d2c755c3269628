"""Accuracy against the share of weights that learn by back-propagation.

``python experiments/share_of_bp.py GENOTYPE --dataset small:fashion-mnist,images=5000,shrink=2 --out shares``

Of the searched edges of a genotype, a growing part learns by back-propagation, drawn anew for each seed, and the others
by the rule; the first network has the rule on every layer. Printed is a table in Markdown. The same command continues
what was interrupted, and with more seeds adds those.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import replace
from pathlib import Path

import torch

import bionas_fast as bf
from bionas_fast.runs.seeds import SeedTable, Series

PARTS = (0, 0.25, 0.5, 0.75, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genotype", help="a genotype file, or a published genotype's name")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--rule", default="usf")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = bf.space.published_names()
    genotype = (
        bf.space.published(given.genotype).genotype if given.genotype in names else bf.Genotype.load(given.genotype)
    )
    levels = {f"{given.rule} everywhere": lambda _: genotype.with_rule(given.rule, everywhere=True)}
    for part in PARTS:
        levels[f"bp on {part:.0%} of edges"] = lambda seed, part=part: mixed(genotype, given.rule, part, seed)
    image = bf.load_dataset(given.dataset, given.data_dir).images.shape[1:]
    series, shares = [], []
    for index, (name, assigned) in enumerate(levels.items()):
        accuracies, own = {}, []
        for seed in range(given.seeds):
            training = bf.TrainConfig(
                dataset=given.dataset,
                data_dir=given.data_dir,
                cells=given.cells,
                channels=given.channels,
                epochs=given.epochs,
                seed=seed,
            )
            folder = given.out / f"{index}" / f"{seed}"
            table = bf.repeat_training(assigned(seed), training, seeds=1, out=folder)
            accuracies[seed] = table.series[0].values[seed]
            network = bf.load(folder / f"seed-{seed}")
            own.append(bf.models.measure_size(network, image).shares.get("bp", 0.0))
            print(f"{name}, seed {seed}: {accuracies[seed]:.2f}", flush=True)
        series.append(Series(name, accuracies))
        shares.append(statistics.fmean(own))
    print(SeedTable("test accuracy %", tuple(series)).to_markdown())
    print("weights under bp: " + ", ".join(f"{s.name} {share:.1%}" for s, share in zip(series, shares, strict=True)))


def mixed(genotype: bf.Genotype, rule: str, part: float, seed: int) -> bf.Genotype:
    """Return the genotype with back-propagation on a random part of its searched edges, and the rule on the others."""
    count = sum(len(cell.edges) for cell in genotype.cells.values())
    chosen = set(random.Random(seed).sample(range(count), round(part * count)))
    cells, position = {}, 0
    bp, ruled = genotype.with_rule("bp"), genotype.with_rule(rule)
    for kind, cell in bp.cells.items():
        nodes = []
        for plain, other in zip(cell.nodes, ruled.cells[kind].nodes, strict=True):
            edges = []
            for pair in zip(plain, other, strict=True):
                edges.append(pair[position not in chosen])
                position += 1
            nodes.append(tuple(edges))
        cells[kind] = replace(cell, nodes=tuple(nodes))
    return bf.Genotype(**cells, fixed=genotype.fixed)


if __name__ == "__main__":
    main()
