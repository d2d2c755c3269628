"""Searches repeated over seeds: each is the search that it is alone, and can be trained by itself."""

from __future__ import annotations

import csv
import statistics

import pytest

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.runs.folder import RunFolder
from bionas_fast.searching import SearchConfig
from helpers import killing
from helpers.runs import SETTINGS, expect_same, put_dataset

SMALL = SearchConfig(**{**SETTINGS["search"], "epochs": 1, "batch_size": 24, "method": "random"})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    put_dataset(monkeypatch, killing.specks)


def test_searches_with_several_seeds(tmp_path):
    config = SMALL.with_settings(seed=4)
    table = bf.repeat_search(config, seeds=2, out=tmp_path / "all")
    accuracies = []
    for seed in (4, 5):
        alone = bf.search(config.with_settings(seed=seed), out=tmp_path / str(seed))
        expect_same(tmp_path / "all" / f"seed-{seed}", tmp_path / str(seed))
        assert table.genotypes[seed] == alone.genotype
        accuracies.append(alone.final_metrics["valid_accuracy"])
    assert list(table.accuracies.values.values()) == accuracies
    assert table.summary()["validation accuracy %"].startswith(f"{statistics.fmean(accuracies):.2f} ± ")
    assert table.summary()["deviation"] == f"{statistics.stdev(accuracies):.2f}"
    with (tmp_path / "all" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["seed"]), float(row["validation accuracy %"])) for row in rows] == list(
        zip((4, 5), accuracies, strict=True)
    )
    assert [row["genotype"] for row in rows] == [genotype.hash for genotype in table.genotypes.values()]
    page = (tmp_path / "all" / "report.html").read_text()
    assert all(genotype.hash in page for genotype in table.genotypes.values()) and "<svg" in page

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").glob("seed-*/checkpoint.pt")}
    more = bf.repeat_search(config, seeds=3, out=tmp_path / "all")
    assert sorted(more.genotypes) == [4, 5, 6]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert RunFolder.open(tmp_path / "all" / "seed-6").read().settings["seed"] == 6


def test_refused():
    with pytest.raises(InputError, match="seeds: expected at least 1, got 0"):
        bf.repeat_search(SMALL, seeds=0)
