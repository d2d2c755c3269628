"""Do searches under learning rules find cells that suffer less under a rule?

``python experiments/cells_under_a_rule.py --dataset small:fashion-mnist,images=5000,shrink=2 --rule usf --out cells``

DARTS over operations alone (``darts-bp``), DARTS over operations and rules (``bionas``) and random search over both
each search once per seed. Every genotype found is trained with all its searched edges under back-propagation, and again
under the rule. Printed are two tables in Markdown: the accuracy under the rule, and the accuracy that the rule costs.
The same command continues what was interrupted, and with more seeds adds those.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import bionas_fast as bf
from bionas_fast.runs.seeds import SeedTable, Series

SEARCHES = {
    "darts-bp": {"method": "darts", "rules": ("bp",), "alpha_learning_rate": 3e-4},
    "bionas": {"method": "darts", "alpha_learning_rate": 3e-4},
    "random": {"method": "random"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--rule", default="usf")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--search-channels", type=int, default=4)
    parser.add_argument("--search-epochs", type=int, default=4)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = {"dataset": given.dataset, "data_dir": given.data_dir, "cells": given.cells}
    under, costs = [], []
    for name, settings in SEARCHES.items():
        search = bf.SearchConfig(
            **data, **settings, channels=given.search_channels, epochs=given.search_epochs, warmup_epochs=0
        )
        found = bf.repeat_search(search, seeds=given.seeds, out=given.out / "searches" / name)
        accuracies, losses = {}, {}
        for seed, genotype in found.genotypes.items():
            training = bf.TrainConfig(**data, channels=given.channels, epochs=given.epochs, seed=seed)
            folder = given.out / "trainings" / name / str(seed)
            table = bf.compare_rules(genotype, training, variants=("bp", given.rule), out=folder)
            plain, ruled = (series.values[seed] for series in table.series)
            accuracies[seed], losses[seed] = ruled, plain - ruled
            print(f"{name}, seed {seed}: bp {plain:.2f}, {given.rule} {ruled:.2f}", flush=True)
        under.append(Series(name, accuracies))
        costs.append(Series(name, losses))
    print(SeedTable(f"test accuracy % under {given.rule}", tuple(under)).to_markdown())
    print(SeedTable(f"accuracy under bp minus that under {given.rule}", tuple(costs)).to_markdown())


if __name__ == "__main__":
    main()
