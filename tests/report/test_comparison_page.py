"""The page of repeated runs: its drawings are read back and compared with the numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from bionas_fast.report import Compared, write_comparison
from bionas_fast.report.colors import INK, RULE_COLORS
from bionas_fast.report.seeds import curves_figure, results_figure, shares_figure
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.seeds import SeedTable, Series
from bionas_fast.training import ResNetConfig
from helpers.pages import Page

METRIC = "test accuracy %"
BP = Series("bp", {0: 80.0, 1: 82.0, 2: 83.5}, dict.fromkeys(range(3), 97.0))
USF = Series("usf", {0: 79.0, 1: 81.5, 2: 80.0}, dict.fromkeys(range(3), 4.0))
SHUFFLED = Series("shuffle:1", {1: 70.0}, {1: 4.0}, {0: "the loss <nan> is not finite"})
TABLE = SeedTable(METRIC, (BP, USF, SHUFFLED))


def bars(ax):
    """Read the intervals that are drawn: the x and the y of both ends of each."""
    return [tuple(segment.T) for lines in ax.collections for segment in lines.get_segments() if len(segment)]


def drawn_dots(ax):
    """Read the dots of all lines: (x, y) of each."""
    return {(float(x), float(y)) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)}


def interval(values):
    return stats.ttest_1samp(values, 0).confidence_interval(0.95)


def test_the_results_of_all_seeds_and_their_differences():
    means, differences = results_figure(TABLE).axes
    for position, series in enumerate(TABLE.series):
        for value in series.values.values():
            assert (value, position) in drawn_dots(means)
        mean = pytest.approx(np.mean(list(series.values.values())))
        assert any(x == mean and y == position for x, y in drawn_dots(means))
    spans = [tuple(x) for x, _ in bars(means)]
    for series, span in zip((BP, USF), spans, strict=False):
        assert span == pytest.approx(tuple(interval(list(series.values.values()))))
    # A single seed has no interval, only its dot; the first variant has no difference to itself.
    paired = [USF.values[seed] - BP.values[seed] for seed in range(3)]
    assert {(d, 1) for d in paired} | {(70.0 - 82.0, 2)} <= drawn_dots(differences)
    assert not any(y == 0 and x != 0 for x, y in drawn_dots(differences))
    assert tuple(bars(differences)[0][0]) == pytest.approx(tuple(interval(paired)))
    assert [text.get_text() for text in means.texts] == ["bp", "usf", "shuffle:1"]


def test_results_over_the_share_of_back_propagation():
    (ax,) = shares_figure(TABLE).axes
    placed = [(float(x[0]), tuple(y)) for x, y in bars(ax)]
    assert len(placed) == 2
    for series, share in ((BP, 97.0), (USF, 4.0)):
        expected = pytest.approx(tuple(interval(list(series.values.values()))))
        assert any(x == share and y == expected for x, y in placed)
    low, high = ax.get_ylim()
    assert (
        low < min(interval(list(USF.values.values()))) and low < 70 and high > max(interval(list(BP.values.values())))
    )
    assert ax.get_xlim()[0] < 0 and ax.get_xlim()[1] > 100
    # Variants with the same share stand next to each other, and nothing hides a name.
    places = [text.get_transform().transform(text.get_position())[0] for text in ax.texts]
    assert {text.get_text() for text in ax.texts} == {"bp", "usf", "shuffle:1"}
    assert all(abs(a - b) > 5 for i, a in enumerate(places) for b in places[:i])


def test_colours_are_those_of_the_rules():
    names = ["usf", "usf:everywhere", "found usf", "found usf:everywhere", "genotype", "shuffle:1", "usf-cells"]
    colors = [ax.lines[0].get_color() for ax in curves_figure({name: [{1: 1.0, 2: 2.0}] for name in names}).axes]
    assert colors == [RULE_COLORS["usf"]] * 4 + [INK] * 3


def test_curves():
    axes = curves_figure({"bp": [{1: 10.0, 2: 20.0, 5: 30.0}, {1: 11.0, 2: 22.0}], "usf": [{4: 5.0}, {}]}).axes
    assert [list(line.get_ydata()) for line in axes[0].lines] == [[10, 20, 30], [11, 22]]
    assert [list(line.get_xdata()) for line in axes[0].lines] == [[1, 2, 5], [1, 2]]
    assert axes[1].lines[0].get_marker() == "o"
    assert list(axes[1].get_xticks()) == [4]
    assert all(ax.get_ylim()[0] < 5 and ax.get_ylim()[1] > 30 for ax in axes)


@pytest.fixture
def runs(tmp_path):
    """Folders with settings and metrics; one failed in its first epoch."""
    folders = {}
    for series in TABLE.series:
        for seed in range(3 if len(series.values) > 1 else 2):
            path = tmp_path / series.name.replace(":", "-") / f"seed-{seed}"
            with RunFolder.create(path) as folder:
                folder.write_config("resnet", ResNetConfig(seed=seed).settings(), network={}, plugins=())
            if seed in series.values:
                rows = [{"epoch": epoch, "test_accuracy": series.values[seed] - 2 + epoch} for epoch in (1, 2)]
                (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            folders.setdefault(series.name, []).append(path)
    (tmp_path / "bp" / "seed-0" / "report.html").write_text("")
    return folders


def test_page(runs, tmp_path):
    compared = Compared("Trainings on a & b", TABLE, runs)
    write_comparison(tmp_path / "report.html", [compared], title="<Training>")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags["svg"] == 3
    assert page.tags["script"] == 0
    for words in ("<Training>", "a & b", "shuffle:1, seed 0: the loss <nan> is not finite", "bp %", "1 (1 failed)"):
        assert words in page.text
    mean, half = np.mean([80, 82, 83.5]), stats.t.ppf(0.975, 2) * stats.sem([80, 82, 83.5])
    assert f"{mean:.2f} ± {half:.2f}" in page.text
    links = [target for target in page.references if target and not target.startswith("#")]
    assert links[:2] == ["bp/seed-0/report.html", "bp/seed-1"]
    assert "shuffle-1/seed-1" in links
    assert all((tmp_path / link).exists() for link in links)
    references = {target[1:] for target in page.references if target.startswith("#")}
    assert references <= page.ids.keys() and max(page.ids.values()) == 1


def test_without_results_or_differing_shares(runs, tmp_path):
    """Nothing is drawn over the share of back-propagation if all variants have the same."""
    same = SeedTable(METRIC, (USF, SHUFFLED))
    write_comparison(tmp_path / "same.html", [Compared("Trainings", same, runs)], title="Training")
    assert Page((tmp_path / "same.html").read_text()).tags["svg"] == 2
    failed = SeedTable(METRIC, (Series("usf", {}, {}, {0: "not finite"}),))
    none = {"usf": [tmp_path / "shuffle-1" / "seed-0"]}
    write_comparison(tmp_path / "failed.html", [Compared("Trainings", failed, none)], title="Training")
    page = Page((tmp_path / "failed.html").read_text())
    assert page.tags["svg"] == 0 and "usf, seed 0: not finite" in page.text
