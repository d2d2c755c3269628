"""Does robust search find architectures that withstand attacks better than a plain search of equal duration does?

``python experiments/robust_search.py --dataset small:fashion-mnist,images=5000,shrink=2 --threads 1 --out robust``

For every seed, a search with the robust term runs for ``--search-epochs``; a plain one runs for as many epochs as fit
into the same time, by the median duration of its first epochs. The genotypes are trained with equal settings and
attacked by PGD through the true gradient and by Square, which uses none. Printed is one table in Markdown; differences
are robust minus plain, paired by seed, with their 95 % interval. The same command continues what was interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

import bionas_fast as bf
from bionas_fast.data import configured
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.seeds import Series
from bionas_fast.searching import SearchResult

#: Epochs of the plain search by which its duration is estimated.
PROBE = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--method", default="evolution", help="eg, evolution or random")
    parser.add_argument("--robustness", default="noise", help="noise or fgsm")
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--search-channels", type=int, default=4)
    parser.add_argument("--search-epochs", type=int, default=3)
    parser.add_argument("--population", type=int, default=12)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plain, robust = search_settings(given)
    attacks = bf.AttackConfig(
        attacks=("pgd-10", "square-100"),
        gradient="true",
        eps=(given.eps,),
        images=given.images,
        step_size=given.eps / 4,
    )
    measured: dict[str, dict[str, dict[int, float]]] = {}
    for seed in range(given.seeds):
        out = given.out / str(seed)
        long = searched(robust.with_settings(seed=seed), out / "robust")
        epochs = epochs_of_equal_time(plain.with_settings(seed=seed), duration(long), out)
        short = searched(plain.with_settings(seed=seed, epochs=epochs), out / "plain")
        for name, found in (("plain", short), ("robust", long)):
            values = attacked(given, found.genotype, seed, out / f"trained-{name}", attacks)
            for metric, value in {**values, "seconds of search": duration(found)}.items():
                measured.setdefault(metric, {}).setdefault(name, {})[seed] = value
            print(f"seed {seed}, {name}: {values}", flush=True)
    print(markdown(measured))


def search_settings(given: argparse.Namespace) -> tuple[bf.SearchConfig, bf.SearchConfig]:
    """Return the settings of the plain and of the robust search."""
    plain = bf.SearchConfig(
        dataset=given.dataset,
        data_dir=given.data_dir,
        method=given.method,
        cells=given.cells,
        channels=given.search_channels,
        epochs=given.search_epochs,
        warmup_epochs=0,
        population=given.population,
        **({"tournament": 4} if given.method == "evolution" else {}),
    )
    term = {"robustness": given.robustness, "robustness_eps": given.eps, "robustness_weight": given.weight}
    return plain, plain.with_settings(**term)


def searched(config: bf.SearchConfig, out: Path) -> SearchResult:
    """Search, continue an interrupted search, or read a complete one."""
    return bf.search(config, resume=out) if (out / "config.yaml").is_file() else bf.search(config, out=out)


def duration(found: SearchResult) -> float:
    """Return the seconds that a search took."""
    return sum(row["seconds"] for row in found.metrics)


def epochs_of_equal_time(config: bf.SearchConfig, seconds: float, out: Path) -> int:
    """Return the number of epochs of a plain search that take this time; recorded, as no two measurements agree."""
    record = out / "equal-time.json"
    if record.is_file():
        return int(json.loads(record.read_text())["epochs"])
    probe = searched(config.with_settings(epochs=PROBE), out / "probe")
    each = statistics.median(row["seconds"] for row in probe.metrics)
    epochs = max(1, round(seconds / each))
    write_atomic(record, json.dumps({"epochs": epochs, "seconds": seconds, "seconds of a plain epoch": each}) + "\n")
    return epochs


def attacked(
    given: argparse.Namespace, genotype: bf.Genotype, seed: int, out: Path, attacks: bf.AttackConfig
) -> dict[str, float]:
    """Train a genotype and attack it; return accuracies in percent."""
    config = bf.TrainConfig(
        dataset=given.dataset,
        data_dir=given.data_dir,
        cells=given.cells,
        channels=given.channels,
        epochs=given.epochs,
        seed=seed,
    )
    begun = (out / "config.yaml").is_file()
    bf.train(genotype, config, **{"resume" if begun else "out": out})
    found = bf.attack(bf.load(out), configured(config), attacks, out=out.with_name(f"{out.name}-attacked"))
    return {
        "clean accuracy %": found.clean_accuracy.percent,
        **{f"{own.attack} %": own.accuracy.percent for own in found.outcomes},
    }


def markdown(measured: dict[str, dict[str, dict[int, float]]]) -> str:
    """Write one table: for every metric the means of both searches, and the paired difference with its interval."""
    lines = ["| metric | plain | robust | robust − plain |", "|---|---|---|---|"]
    for metric, found in measured.items():
        plain, robust = Series("plain", found["plain"]), Series("robust", found["robust"])
        differences = {seed: value - found["plain"][seed] for seed, value in found["robust"].items()}
        paired = Series("difference", differences)
        lines.append(f"| {metric} | {plain.interval} | {robust.interval} | {paired.interval} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
