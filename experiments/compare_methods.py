"""Which search methods beat random search at equal budget?

``python experiments/compare_methods.py --dataset digits --seeds 5 --out methods``

Every method searches with the same settings for the same number of epochs, seed by seed, and what it finds is trained
alike; ``no search`` trains an architecture drawn at random. Printed is a table in Markdown, with differences to
random search paired by seed, and the median time of a search. The same command continues what was interrupted, and with
more seeds adds those.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import bionas_fast as bf

NO_SEARCH = "no search"
#: The settings of each method, random search first. The epochs of projection are among those of the search.
METHODS: dict[str, dict[str, object]] = {
    "random": {"method": "random"},
    NO_SEARCH: {},
    "darts": {"method": "darts"},
    "darts2": {"method": "darts2"},
    "darts, regularised": {"method": "darts", "edge_normalisation": True, "beta_decay": 5.0, "skip_limit": 2},
    "darts, projection": {"method": "darts", "projection_epochs": 3},
    "darts, perturbation": {"method": "darts", "alpha_perturbation": "random"},
    "darts, gdas": {"method": "darts", "sampling": "gdas"},
    "eg": {"method": "eg"},
    "eg, 4 searches": {"method": "eg", "eg_searches": 4, "population": 12},
    "evolution": {"method": "evolution"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of a search")
    parser.add_argument("--train-epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = {"dataset": given.dataset, "data_dir": given.data_dir}
    genotypes: dict[str, dict[int, bf.Genotype]] = {name: {} for name in given.methods}
    times: dict[str, list[float]] = {}
    # Seed by seed, so that an early table compares all methods.
    for seeds in range(1, given.seeds + 1):
        for name in given.methods:
            config = bf.SearchConfig(**data, epochs=given.epochs, **METHODS[name])
            if name == NO_SEARCH:
                seed = seeds - 1
                generator = torch.Generator().manual_seed(seed)
                genotypes[name][seed] = bf.space.random_genotype(bf.space.get_space(config.space), generator)
                continue
            folder = given.out / "searches" / "-".join(name.replace(",", "").split())
            genotypes[name] = dict(bf.repeat_search(config, seeds=seeds, out=folder).genotypes)
            found = (bf.SearchResult.load(folder / f"seed-{seed}") for seed in range(seeds))
            times[name] = [sum(row["seconds"] for row in result.metrics) for result in found]
        training = bf.TrainConfig(**data, epochs=given.train_epochs, evaluate_every=given.train_epochs)
        table = bf.compare_genotypes(genotypes, training, out=given.out / "trainings", progress=False)
        print(table.to_markdown(), flush=True)
    print("seconds of a search, median: " + ", ".join(f"{n} {statistics.median(own):.0f}" for n, own in times.items()))


if __name__ == "__main__":
    main()
