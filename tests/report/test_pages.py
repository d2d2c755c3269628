"""Content of the pages of runs, compared with the files that were written by hand."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from bionas_fast import InputError
from bionas_fast.cli.app import main
from bionas_fast.evaluation import Evaluation
from bionas_fast.report import AttackTable, collect, write_report
from bionas_fast.report.charts import curves_figure, operations_figure, rules_figure, shares_figure
from bionas_fast.report.colors import rule_color
from bionas_fast.report.history import changes, history_figure
from bionas_fast.report.layers import alignment_figure, gradients_figure
from bionas_fast.report.robustness import gap_figure
from bionas_fast.runs.folder import RunFolder
from bionas_fast.space import Cell, Edge, Genotype, get_space, random_genotype
from helpers import killing
from helpers.pages import Page, layer_rows, write_attack, write_search, write_training
from helpers.runs import make, put_dataset, start

SPACE = get_space("bionas")
GENOTYPE = random_genotype(SPACE, torch.Generator().manual_seed(0))
ALPHAS = {kind: np.zeros((3, 14, 22)) for kind in ("normal", "reduce")}


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, words)])
    return stop.value.code


class TestAlpha:
    def test_shares_are_shown_beside_those_of_the_candidates(self):
        for axes in rules_figure(ALPHAS, SPACE).axes:
            prior = axes.lines[0].get_ydata()[0]
            count = int(axes.get_title(loc="left").split("(")[1].split(" ")[0])
            assert prior == count / 22
            # Equal α: every curve lies on the line.
            assert all(line.get_ydata() == pytest.approx([prior] * 3) for line in axes.lines[1:])
        titles = [axes.get_title(loc="left") for axes in operations_figure(ALPHAS, SPACE).axes]
        assert "sep_conv_3x3 (4 of 22)" in titles and "none (1 of 22)" in titles

    def test_bars_of_the_candidates_stand_above_those_of_the_nodes(self):
        axes = shares_figure(GENOTYPE, ALPHAS, SPACE).axes[0]
        rows = {}
        for bar in axes.patches:
            rows.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(bar.get_width())
        assert sorted(rows) == [0, 1, 2, 3, 4]
        assert all(widths == pytest.approx(rows[0]) and sum(widths) == pytest.approx(1) for widths in rows.values())
        assert sorted(rows[0]) == pytest.approx([3 / 22, 4 / 22, 5 / 22, 5 / 22, 5 / 22])

    def test_entropy_from_zero_to_its_maximum(self):
        (axes,) = curves_figure([{"epoch": k, "alpha_entropy": math.log(4)} for k in (1, 2)], 22).axes
        assert list(axes.lines[0].get_ydata()) == pytest.approx([2, 2])
        low, high = axes.get_ylim()
        assert low == 0 and math.log2(22) < high < 1.1 * math.log2(22)

    def test_last_weights_edge_by_candidate(self, tmp_path):
        alphas = {kind: np.zeros((3, 14, 22)) for kind in ("normal", "reduce")}
        alphas["normal"][-1, 0, 5] = math.log(21)  # half of the weight of its edge
        write_report(write_search(tmp_path, GENOTYPE, SPACE, metrics=[{"epoch": 1}], alphas=alphas))
        text = (tmp_path / "report.html").read_text()
        assert text.count('<table class="heat"') == 2
        cells = text.split('<table class="heat"')[1].split("</table>")[0]
        assert cells.count("<td") == 14 * 22
        row = cells.split("<tbody>")[1].split("</tr>")[0]
        assert [part.split("</td>")[0].rpartition(">")[2] for part in row.split("<td")[1:]].count("50") == 1
        edges = [e for nodes in GENOTYPE.normal.nodes for e in nodes]
        assert cells.count("chosen") == len(edges)


class TestHistory:
    #: Two edges into node 2 in every epoch; that from state 1 changes its rule, and later its operation.
    TEXTS = ("sep_conv_3x3@usf<-1", "sep_conv_3x3@usf<-1", "sep_conv_3x3@fa<-1", "max_pool_3x3<-1")

    @pytest.fixture
    def genotypes(self):
        still = Cell((tuple(map(Edge.parse, ("skip_connect@usf<-0",))),), (2,))
        return [Genotype(Cell(((*still.nodes[0], Edge.parse(text)),), (2,)), still) for text in self.TEXTS]

    def test_a_bar_lasts_as_long_as_a_candidate(self, genotypes):
        normal, reduce = history_figure(genotypes).axes
        bars = [
            (bar.get_x(), bar.get_width(), round(bar.get_y() + 0.4), bar.get_facecolor()[:3]) for bar in normal.patches
        ]
        colors = [to_rgb(rule_color(rule)) for rule in ("usf", "usf", "fa", None)]
        spans = [(0.5, 4, 0), (0.5, 2, 1), (2.5, 1, 1), (3.5, 1, 1)]
        assert bars == [(*span, color) for span, color in zip(spans, colors, strict=True)]
        assert [label.get_text() for label in normal.get_yticklabels()] == ["0 → 2", "1 → 2"]
        assert [bar.get_width() for bar in reduce.patches] == [4]
        assert changes(genotypes) == [0, 1, 1]

    def test_page(self, genotypes, tmp_path):
        write_report(write_search(tmp_path / "run", genotypes[-1], SPACE, genotypes=genotypes))
        page = (tmp_path / "run" / "report.html").read_text()
        assert "Genotype over time" in Page(page).words
        assert "replaced in an epoch: 0, 1, 1" in page

    @pytest.mark.parametrize("text", ["no", "[]", "{}", '{"epoch": 1, "format_version": 1}'])
    def test_damaged(self, text, tmp_path):
        write_search(tmp_path / "run", GENOTYPE, SPACE)
        (tmp_path / "run" / "genotypes.jsonl").write_text(text)
        with pytest.raises(InputError, match=r"genotypes\.jsonl, line 1: "):
            write_report(tmp_path / "run")


class TestLayers:
    def test_means_over_layers(self):
        rows = layer_rows()
        variance, noise, cosine = gradients_figure({"a": rows}).axes
        geometric = [1e-3 * math.sqrt((1 + epoch) * (2 + epoch)) for epoch in range(3)]
        assert list(variance.lines[-1].get_ydata()) == pytest.approx(geometric)
        assert variance.get_yscale() == noise.get_yscale() == "log"
        assert list(cosine.lines[-1].get_ydata()) == pytest.approx([0.75, 1.25, 1.75])
        angle, ratio = alignment_figure({"a": rows, "b": rows}).axes
        assert list(angle.lines[-1].get_ydata()) == pytest.approx([60, 100, 140])
        assert len(ratio.lines) == 2 * 3


class TestClasses:
    def test_confusion(self, tmp_path):
        confusion = np.zeros((10, 10), dtype=int)
        confusion[np.arange(10), np.arange(10)] = np.arange(10, 20)
        confusion[3, 7] = 37
        write_training(tmp_path / "run", confusion=confusion.tolist())
        write_report(tmp_path / "run")
        page = Page((tmp_path / "run" / "report.html").read_text())
        row = page.words[page.words.index("d", page.words.index("taken for") + 12) :][:12]
        assert row == ["d", f"{100 * 13 / 50:.1f}", *"···", "13", *"···", "37", *"··"]

    def test_damaged(self, tmp_path):
        write_training(tmp_path / "run", confusion=[[1, 0], [0, 1]])
        path = tmp_path / "run" / "evaluation.json"
        whole = json.loads(path.read_text())
        for wrong in ("no", "{}", json.dumps({**whole, "images": 3}), json.dumps({**whole, "confusion": [[1, 2]]})):
            path.write_text(wrong)
            with pytest.raises(InputError, match=r"evaluation\.json: "):
                write_report(tmp_path / "run")

    def test_an_evaluation_is_read_as_it_was_written(self):
        whole = Evaluation(3, 0.5, 100 / 3, None, torch.tensor([[1, 1], [1, 0]]), 12.5)
        read = Evaluation.from_json(whole.to_json())
        assert read.confusion.equal(whole.confusion) and read.per_class == whole.per_class
        names = ("images", "loss", "accuracy", "top5", "calibration_error")
        assert all(getattr(read, name) == getattr(whole, name) for name in names)


class TestRobustness:
    def test_gap_between_the_gradients(self, tmp_path):
        table = AttackTable.read(write_attack(tmp_path, {"a": (80.0, 30.0), "b": (40.0, 40.0)}))
        for axes, (feedback, true) in zip(gap_figure(table.records).axes, ((80, 30), (40, 40)), strict=True):
            dots = {
                (float(line.get_xdata()[0]), line.get_markerfacecolor() == "none")
                for line in axes.lines
                if line.get_marker() == "o"
            }
            assert {(feedback, False), (true, True), (90.0, False), (60.0, False)} == dots
            spans = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
            assert spans.count((feedback, true)) == 2

    @pytest.mark.parametrize("text", ["no", "{}", '{"records": [], "rows": [], "legend": "", "warnings": {}}'])
    def test_damaged(self, text, tmp_path):
        with pytest.raises(InputError, match=r"holds no results of a finished attack: it has no table\.json"):
            AttackTable.read(tmp_path)
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(InputError, match=r"table\.json: not"):
            AttackTable.read(tmp_path)


@pytest.mark.parametrize("kind", ["train", "resnet", "softhebb"])
def test_a_training_ends_with_its_page(kind, drawn, tmp_path, monkeypatch):
    put_dataset(monkeypatch, killing.specks)
    start(kind, make(kind, epochs=1).config, out=tmp_path / "run")
    page = Page((tmp_path / "run" / "report.html").read_text())
    last = RunFolder.open(tmp_path / "run").read_metrics()[-1]
    assert f"{last['test_accuracy']:.2f} %" in page.text
    assert {"Training", "Test images by class", "Configuration"} <= set(page.words)


class TestCommand:
    def test_one_run(self, tmp_path, capsys):
        run = write_training(tmp_path / "run")
        attack = write_attack(tmp_path / "attack", {"net": (80.0, 30.0)})
        assert command(run, "--attack", attack) == 0
        page = Page((run / "report.html").read_text())
        assert "75.00 %" in page.text and "net: <obfuscated>" in page.text and "+50.0" in page.text
        assert "usf 99.5 %" in page.text  # of the network, which the command builds

    def test_several_runs(self, tmp_path, capsys):
        for rule, last in (("bp", 90.0), ("usf", 80.0)):
            for seed in (0, 1):
                place = tmp_path / "rules" / rule / f"seed-{seed}"
                write_training(place, rule=rule, seed=seed, accuracies=(50.0, last + seed))
        write_training(tmp_path / "part", rule="fa", epochs=3)  # two of three epochs
        write_search(
            tmp_path / "search", GENOTYPE, SPACE, metrics=[{"epoch": 1, "valid_accuracy": 55.5}], alphas=ALPHAS
        )
        out = tmp_path / "page.html"
        words = (tmp_path / "rules", f"<half>={tmp_path / 'part'}", tmp_path / "search", "--out", out)
        assert command(*words) == 0
        page = Page(out.read_text())
        assert {"Trainings on digits", "Searches on digits", "rules bp", "<half>"} <= set(page.words)
        assert "90.50 ± 6.35" in page.text and "-10.00 ± 0.00" in page.text
        assert "stopped" in page.words and "2 of 3" in page.words
        (trainings, searches) = collect({name: tmp_path / name for name in ("rules", "part", "search")})
        found = {series.name: dict(series.values) for series in trainings.table.series}
        assert found == {"rules bp": {0: 90.0, 1: 91.0}, "rules usf": {0: 80.0, 1: 81.0}, "part": {}}
        assert searches.table.series[0].values == {0: 55.5}
        assert trainings.table.series[0].shares[0] > 99 > 1 > trainings.table.series[1].shares[0]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("missing",), "no run folder missing"),
            (("run", "again=run", "again=run"), "names two runs"),
            (("empty",), "empty holds no runs$"),
            (("attacks",), "attacks holds no runs; it holds results of attacks.*--attack"),
            (("run", "--attack", "run"), "holds no results of a finished attack"),
            (("run", "--out", "page.txt"), "expected the name of an HTML file"),
            (("run", "copy"), "copy.*metrics.jsonl, line 1: not JSON"),
        ],
    )
    def test_bad_input(self, words, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for name in ("run", "copy"):
            write_training(tmp_path / name)
        (tmp_path / "copy" / "metrics.jsonl").write_text("{")
        (tmp_path / "empty").mkdir()
        (tmp_path / "attacks").mkdir()
        (tmp_path / "attacks" / "table.json").write_text("[]")
        assert command(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert re.search(message, error)
        assert not (tmp_path / "runs").exists() and not (tmp_path / "run" / "report.html").exists()
