"""Does a searched mix with learned feedback and strict normalisation beat the paper's mix, back-propagation and uSF?

``python experiments/learned_rules.py --dataset small:fashion-mnist,images=5000,shrink=2 --out learned``

Each seed searches twice: over the rules of the paper (``fa``, ``usf``, ``brsf``, ``frsf``), and over these, ``kp`` and
``nsf``. What the second search found is trained as it is, with no weight under back-propagation (stem, preprocessing
and classifier by ``kp``), and with one rule on every layer. What the first one found is trained with the number of
channels that makes it closest in size: as it is, and with the other layers by ``usf``. Printed is a
table in Markdown. The same command continues what was interrupted, and with more seeds adds those.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import bionas_fast as bf
from bionas_fast.runs.seeds import SeedTable, Series

PAPER = ("fa", "usf", "brsf", "frsf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--alone", nargs="*", default=["bp", "usf"], help="rules to train on every layer")
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--search-channels", type=int, default=4)
    parser.add_argument("--search-epochs", type=int, default=5)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = {"dataset": given.dataset, "data_dir": given.data_dir, "cells": given.cells}
    images = bf.load_dataset(given.dataset, given.data_dir)
    found: dict[str, list[tuple[float, float, int]]] = {}

    def weights(genotype: bf.Genotype, channels: int) -> int:
        shape = {"cells": given.cells, "in_channels": images.in_channels, "num_classes": images.num_classes}
        network = bf.build_network(genotype, channels=channels, **shape)
        return bf.models.measure_size(network, images.images.shape[1:]).parameters

    for seed in range(given.seeds):
        genotypes = []
        for name, rules in (("paper", PAPER), ("learned", (*PAPER, "kp", "nsf"))):
            search = bf.SearchConfig(**data, rules=rules, channels=given.search_channels, epochs=given.search_epochs)
            table = bf.repeat_search(search, seeds=seed + 1, out=given.out / "searches" / name)
            genotypes.append(table.genotypes[seed])
        paper, learned = genotypes
        size = weights(learned, given.channels)
        closest = min(range(2, 2 * given.channels + 1), key=lambda channels: abs(weights(paper, channels) - size))
        arms = {
            "the paper's mix": (paper, closest),
            "the paper's mix, no bp": (outside(paper, "usf"), closest),
            "mix with kp and nsf": (learned, given.channels),
            "mix with kp and nsf, no bp": (outside(learned, "kp"), given.channels),
            **{
                f"{rule} everywhere": (learned.with_rule(rule, everywhere=True), given.channels) for rule in given.alone
            },
        }
        for name, (genotype, channels) in arms.items():
            training = bf.TrainConfig(**data, channels=channels, epochs=given.epochs, seed=seed)
            folder = given.out / "trainings" / "-".join(name.replace(",", "").replace("'", "").split()) / str(seed)
            series = bf.repeat_training(genotype, training, seeds=1, out=folder).series[0]
            found.setdefault(name, []).append((series.values[seed], series.share, weights(genotype, channels)))
            print(f"{name}, seed {seed}: {series.values[seed]:.2f}", flush=True)
        rows = tuple(
            Series(name, dict(enumerate(a for a, _, _ in own)), dict(enumerate(s for _, s, _ in own)))
            for name, own in found.items()
        )
        print(SeedTable("test accuracy %", rows).to_markdown(), flush=True)
    sizes = (f"{name} {statistics.fmean(count for _, _, count in own):,.0f}" for name, own in found.items())
    print("weights, mean: " + ", ".join(sizes))


def outside(genotype: bf.Genotype, rule: str) -> bf.Genotype:
    """Return the genotype with the rule on the layers that are not searched: stem, preprocessing and classifier."""
    return bf.Genotype(**genotype.cells, fixed=dict.fromkeys(bf.space.genotype.FIXED_LAYERS, rule))


if __name__ == "__main__":
    main()
