"""Comparisons of several genotypes, and of those that several searches found."""

from __future__ import annotations

import csv
from importlib import import_module

import pytest

import bionas_fast as bf
from bionas_fast import InputError, Interrupted
from helpers import killing
from helpers.genotypes import GENOTYPE, random_genotype
from helpers.runs import SETTINGS, expect_same, put_dataset

SMALL = bf.TrainConfig(**{**SETTINGS["train"], "epochs": 1, "batch_size": 24, "policy": "none"})
#: The genotypes of two searches with the seeds 0 and 1 each.
SEARCHES = {
    "darts": {0: random_genotype(0), 1: random_genotype(1)},
    "random": {0: random_genotype(2), 1: random_genotype(3)},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    put_dataset(monkeypatch, killing.specks)


def test_the_cells_of_searches_under_one_rule(tmp_path):
    table = bf.compare_genotypes({**SEARCHES, "one": GENOTYPE}, SMALL, variants=["usf"], out=tmp_path / "all")
    assert [series.name for series in table.series] == ["darts usf", "random usf", "one usf"]
    for series in table.series:
        name = series.name.removesuffix(" usf")
        for seed in (0, 1):
            folder = tmp_path / "all" / f"{name}-usf" / f"seed-{seed}"
            found = SEARCHES[name][seed] if name in SEARCHES else GENOTYPE
            assert bf.load(folder).genotype == found.with_rule("usf")
    for seed, found in SEARCHES["random"].items():
        alone = bf.train(found.with_rule("usf"), SMALL.with_settings(seed=seed), out=tmp_path / str(seed))
        expect_same(tmp_path / "all" / "random-usf" / f"seed-{seed}", tmp_path / str(seed))
        assert table.series[1].values[seed] == alone.test_accuracy
        assert table.series[1].shares[seed] == pytest.approx(100 * alone.size.shares["bp"])
    with (tmp_path / "all" / "table.csv").open() as file:
        assert [(row["variant"], row["seed"]) for row in csv.DictReader(file)] == [
            (series.name, str(seed)) for series in table.series for seed in (0, 1)
        ]
    page = (tmp_path / "all" / "report.html").read_text()
    assert "over the share of the weights that learn by back-propagation" in page


def test_plans(tmp_path, monkeypatch):
    """By default all seeds that have genotypes, from that of the settings on."""
    planned = []

    def plan(variants, *_, **__):
        planned[:] = variants
        raise Interrupted("nothing is trained here")

    monkeypatch.setattr(import_module("bionas_fast.training.compare"), "repeat", plan)

    def seeds(genotypes, first=0, **how):
        with pytest.raises(Interrupted):
            bf.compare_genotypes(genotypes, SMALL.with_settings(seed=first), out=tmp_path, **how)
        return [list(variant.runs) for variant in planned]

    assert seeds(SEARCHES) == [[0, 1], [0, 1]]
    assert seeds(SEARCHES, first=1) == [[1], [1]]
    assert seeds(SEARCHES, seeds=1) == [[0], [0]]
    assert seeds({"one": GENOTYPE}) == [[0]]
    assert seeds({"one": GENOTYPE, **SEARCHES}, first=1) == [[1], [1], [1]]
    assert seeds({"one": GENOTYPE}, seeds=2, first=7, variants=["genotype", "bp"]) == [[7, 8], [7, 8]]
    assert [(variant.name, variant.folder, variant.baseline) for variant in planned] == [
        ("one", "one", ""),
        ("one bp", "one-bp", ""),
    ]
    seeds(SEARCHES, variants=["bp", "usf:everywhere"])
    assert [(variant.name, variant.folder, variant.baseline) for variant in planned] == [
        ("darts bp", "darts-bp", ""),
        ("darts usf:everywhere", "darts-usf-everywhere", "darts bp"),
        ("random bp", "random-bp", ""),
        ("random usf:everywhere", "random-usf-everywhere", "random bp"),
    ]


@pytest.mark.parametrize(
    ("genotypes", "how", "message"),
    [
        ({}, {}, "genotypes: expected at least one"),
        (SEARCHES, {"seeds": 3}, r"darts: expected a genotype for seed 2, got those of \[0, 1\]"),
        ({**SEARCHES, "eg": {0: GENOTYPE}}, {}, r"seeds: darts has \[0, 1\], eg has \[0\]; say how many"),
        ({"a b": GENOTYPE, "a-b": GENOTYPE}, {}, "two of them have the folder a-b"),
        (SEARCHES, {"variants": ["usf", "usv"]}, "unknown variant 'usv'; did you mean 'usf'"),
        (SEARCHES, {"variants": []}, "variants: expected at least one"),
        (SEARCHES, {"seeds": 0}, "seeds: expected at least 1, got 0"),
    ],
)
def test_refused_before_anything_is_written(genotypes, how, message, tmp_path):
    with pytest.raises(InputError, match=message):
        bf.compare_genotypes(genotypes, SMALL, out=tmp_path / "all", **how)
    assert not (tmp_path / "all").exists()
