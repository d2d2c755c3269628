"""Compare the search methods at equal budget: ``python experiments/compare_methods.py --dataset digits``.

Every method searches with the same settings, seed by seed, and what it finds is trained alike. Printed is a table in
Markdown: mean and range over the seeds of the test accuracy, and the median time of a search.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

import bionas_fast as bf

METHODS = ("darts", "darts2", "eg", "random", "evolution")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of a search")
    parser.add_argument("--train-epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        print("| method | test accuracy %, mean (range) | a search, s |\n|---|---|---|", flush=True)
        for method in given.methods.split(","):
            accuracies, seconds = [], []
            for seed in range(given.seeds):
                config = bf.SearchConfig(
                    dataset=given.dataset,
                    data_dir=given.data_dir,
                    method=method,
                    epochs=given.epochs,
                    warmup_epochs=0,
                    **({"alpha_learning_rate": 3e-4} if method.startswith("darts") else {}),
                    seed=seed,
                )
                found = bf.search(config, out=Path(folder) / f"{method}-{seed}")
                seconds.append(sum(row["seconds"] for row in found.metrics))
                training = bf.TrainConfig(
                    dataset=given.dataset, data_dir=given.data_dir, epochs=given.train_epochs, seed=seed
                )
                accuracies.append(bf.train(found.genotype, training, out=False).test_accuracy)
            mean, low, high = statistics.mean(accuracies), min(accuracies), max(accuracies)
            print(f"| `{method}` | {mean:.2f} ({low:.2f}–{high:.2f}) | {statistics.median(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
