"""Statistics over seeds, against scipy, and their tables."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from scipy import stats

from bionas_fast import InputError
from bionas_fast.runs.seeds import LEGEND, Interval, SeedTable, Series
from bionas_fast.runs.student import student_quantile

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(confidence):
    freedom = [*range(1, 40), 100, 1001]
    expected = stats.t.ppf((1 + confidence) / 2, freedom)
    assert [student_quantile(confidence, number) for number in freedom] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_intervals_are_those_of_scipy(count):
    values = RNG.normal(80, 3, count).tolist()
    interval = Interval.of(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.mean - interval.half_width, interval.mean + interval.half_width) == pytest.approx((low, high))
    other = RNG.normal(78, 3, count).tolist()
    one, two = (Series(name, dict(enumerate(own))) for name, own in (("one", values), ("two", other)))
    difference = one.minus(two)
    low, high = stats.ttest_rel(values, other).confidence_interval(0.95)
    assert (difference.mean - difference.half_width, difference.mean + difference.half_width) == pytest.approx(
        (low, high)
    )
    assert one.deviation == pytest.approx(np.std(values, ddof=1))


def test_paired_differences_use_common_seeds_only():
    one, two = Series("one", {0: 5.0, 1: 7.0, 2: 100.0}), Series("two", {1: 6.0, 0: 1.0, 3: -50.0})
    assert one.minus(two).mean == pytest.approx(((5 - 1) + (7 - 6)) / 2)
    assert one.minus(two).count == 2
    with pytest.raises(InputError, match="no seed in common"):
        one.minus(Series("three", {9: 1.0}))
    with pytest.raises(InputError, match="at least one"):
        Interval.of([])


def test_a_single_seed_has_no_interval():
    series = Series("one", {4: 71.25})
    assert math.isnan(series.interval.half_width)
    assert SeedTable("accuracy %", (series,)).rows() == [
        {"variant": "one", "seeds": "1", "accuracy %": "71.25", "deviation": "–"}
    ]


def test_tables():
    table = SeedTable("accuracy %", (Series("bp", {0: 80.0, 1: 82.0}), Series("usf", {0: 79.0, 1: 80.0})))
    half = 12.7062 * math.sqrt(2) / math.sqrt(2)  # t of one degree of freedom
    assert table.to_markdown().splitlines() == [
        "| variant | seeds | accuracy % | deviation | minus bp |",
        "| --- | --- | --- | --- | --- |",
        f"| bp | 2 | 81.00 ± {half:.2f} | 1.41 | – |",
        "| usf | 2 | 79.50 ± 6.35 | 0.71 | -1.50 ± 6.35 |",
        "",
        LEGEND,
    ]
    rows = list(csv.reader(io.StringIO(table.to_csv())))
    assert rows[0] == ["variant", "seed", "accuracy %"]
    assert [(name, int(seed), float(value)) for name, seed, value in rows[1:]] == [
        ("bp", 0, 80.0), ("bp", 1, 82.0), ("usf", 0, 79.0), ("usf", 1, 80.0)
    ]  # fmt: skip


def test_differences_within_genotypes():
    """What a rule costs the cells of two searches: by hand."""
    table = SeedTable(
        "accuracy %",
        (
            Series("a bp", {0: 90.0, 1: 92.0}),
            Series("a usf", {0: 80.0, 1: 84.0}, baseline="a bp"),
            Series("b bp", {0: 88.0, 1: 89.0}),
            Series("b usf", {0: 87.0, 1: 88.0}, baseline="b bp"),
        ),
    )
    first, within = zip(*(list(row.values())[-2:] for row in table.rows()), strict=True)
    assert [text.partition(" ")[0] for text in first] == ["–", "-9.00", "-2.50", "-3.50"]
    assert within == ("–", "-9.00 ± 12.71", "–", "-1.00 ± 0.00")


def test_failed_runs():
    """Nothing is compared with them, and nothing is invented."""
    table = SeedTable(
        "accuracy %", (Series("bp", {}, failures={1: "no loss"}), Series("usf", {1: 79.0}, failures={0: "no gradient"}))
    )
    assert [list(row.values()) for row in table.rows()] == [
        ["bp", "0 (1 failed)", "–", "–", "–"],
        ["usf", "1 (1 failed)", "79.00", "–", "–"],
    ]
    assert table.failures == ("bp, seed 1: no loss", "usf, seed 0: no gradient")
    assert table.to_markdown().endswith("\n\n- failed: bp, seed 1: no loss\n- failed: usf, seed 0: no gradient\n")
    assert table.to_csv() == "variant,seed,accuracy %\nbp,1,\nusf,0,\nusf,1,79.0\n"


def test_shares_of_back_propagation():
    bp, mixed = Series("bp", {0: 80.0, 1: 81.0}, {0: 98.5, 1: 98.5}), Series("mixed", {0: 79.0}, {0: 100 / 3})
    table = SeedTable("accuracy %", (bp, mixed))
    assert [row["bp %"] for row in table.rows()] == ["98.5", "33.3"]
    assert "back-propagation" in table.legend
    assert table.to_csv().splitlines()[0] == "variant,seed,accuracy %,bp %"
    assert table.to_csv().splitlines()[3] == f"mixed,0,79.0,{100 / 3!r}"
    # The mean over different networks, such as those of several searches.
    assert Series("found", {0: 1.0, 1: 2.0}, {0: 20.0, 1: 30.0}).share == 25


def test_a_table_in_a_folder(tmp_path):
    table = SeedTable("accuracy %", (Series("bp", {0: 0.1 + 0.2}),))
    table.write(tmp_path)
    assert (tmp_path / "table.csv").read_text() == "variant,seed,accuracy %\nbp,0,0.30000000000000004\n"
    assert (tmp_path / "table.md").read_text() == table.to_markdown()
    assert LEGEND in table.to_markdown()
    with pytest.raises(InputError, match="cannot write"):
        table.write(tmp_path / "nowhere")
