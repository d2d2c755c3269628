"""Drawings of genotypes: each is parsed and compared with the genotype."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.patches import PathPatch
from rich.console import Console

from bionas_fast import rules
from bionas_fast.errors import InputError
from bionas_fast.report import draw_figure, draw_genotype, write_report
from bionas_fast.report.charts import edge_shares, rule_shares
from bionas_fast.report.colors import MUTED, OWN_RULE_COLORS, RULE_COLORS, rule_color
from bionas_fast.report.figure import genotype_figure
from bionas_fast.report.layout import lay_out
from bionas_fast.space import Cell, Edge, Genotype, derive_genotype, get_space, operation_names
from helpers.pages import Page, write_search


def random_genotype(seed: int, edges_per_node: int = 2) -> Genotype:
    generator = torch.Generator().manual_seed(seed)
    alphas = {kind: torch.randn(14, 22, generator=generator) for kind in ("normal", "reduce")}
    return derive_genotype(alphas, get_space("bionas"), edges_per_node=edges_per_node)


def cell(*nodes: str, concat: tuple[int, ...]) -> Cell:
    return Cell(tuple(tuple(map(Edge.parse, node.split())) for node in nodes), concat)


SMALLEST = cell("skip_connect@usf<-0", concat=(2,))
WIDE = cell(
    "max_pool_3x3<-1 sep_conv_3x3@fa<-0 sep_conv_3x3@dfa<-0",
    "dil_conv_5x5@bp<-2 dil_conv_5x5@bp<-2",
    "avg_pool_3x3<-0",
    concat=(4, 2),
)
GENOTYPES = [
    pytest.param(Genotype(SMALLEST, SMALLEST), id="one-node-one-edge"),
    pytest.param(Genotype(WIDE, SMALLEST, {"head": "dfa"}), id="three-edges-and-an-unused-node"),
    *(pytest.param(random_genotype(seed), id=f"random-{seed}") for seed in range(4)),
    pytest.param(random_genotype(4, edges_per_node=5), id="every-edge"),
]


def drawn(genotype: Genotype, width: int = 80, encoding: str = "utf-8", **options) -> str:
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    draw_genotype(genotype, Console(file=buffer, width=width, **options))
    buffer.flush()
    return buffer.buffer.getvalue().decode(encoding)


EDGE = re.compile(r"(?P<lanes>[│ ]*)[├╰][─┼]* (?P<operation>\w+) +(?:(?P<rule>\w+) )?─*[╮┤]")
INPUT = re.compile(r"[│ ]*(?P<name>\d) = c_\{k-[12]\}")
NODE = re.compile(r"[│ ]*(?P<name>\d+) ◀─*╯")
OUTPUT = re.compile(r" *╰[─┴]*▶ c_k = concat\((?P<states>.*)\)")


def read_back(lines: list[str]) -> tuple[list[list[str]], list[int]]:
    """Parse a drawing of one cell into the edges of every node and the concatenated states."""
    nodes, edges, states, inputs = [], [], [], []
    for upper, lower in itertools.pairwise(lines):
        for column, (above, below) in enumerate(itertools.zip_longest(upper, lower, fillvalue=" ")):
            # A lane has no gap and no dangling end: it runs from its state's name to the state's last use.
            assert above not in "│├┼" or below in "│├┼╰┴" or not lower, (column, upper, lower)
            assert below not in "│├┼╰┴" or above in "│├┼" or above.isalnum(), (column, upper, lower)
    for line in lines:
        if match := EDGE.fullmatch(line):
            rule = f"@{match['rule']}" if match["rule"] else ""
            assert len(match["lanes"]) % 3 == 0
            edges.append(f"{match['operation']}{rule}<-{len(match['lanes']) // 3}")
        elif match := NODE.fullmatch(line):
            assert int(match["name"]) == 2 + len(nodes)  # the number that the JSON has as a source
            nodes.append(edges)
            edges = []
        elif match := OUTPUT.fullmatch(line):
            states = [int(name) for name in match["states"].split(", ")]
        elif match := INPUT.fullmatch(line):
            assert match["name"] == str(len(inputs))
            inputs.append(line)
    assert not edges and len(inputs) == 2
    return nodes, states


def written(found: Cell) -> tuple[list[list[str]], list[int]]:
    return [[str(edge) for edge in edges] for edges in found.nodes], list(found.concat)


class TestTerminal:
    @pytest.mark.parametrize("genotype", GENOTYPES)
    def test_the_graph_can_be_read_from_the_drawing(self, genotype):
        text = drawn(genotype, width=40)
        _, normal, reduce = re.split(r"^(?:normal|reduce) cell$", text, flags=re.MULTILINE)
        assert read_back(normal.splitlines()) == written(genotype.normal)
        assert read_back(reduce.splitlines()) == written(genotype.reduce)

    @pytest.mark.parametrize("genotype", GENOTYPES)
    def test_80_columns_are_enough(self, genotype):
        text = drawn(genotype)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= 80
        assert genotype.hash in text
        for layer, rule in genotype.fixed.items():
            assert f"{layer} {rule}" in text

    def test_cells_stand_side_by_side_where_there_is_room(self):
        genotype = random_genotype(0)
        both = next(line for line in drawn(genotype, width=120).splitlines() if line.startswith("normal cell"))
        assert both.endswith("reduce cell")
        right = [line[both.index("reduce") :] for line in drawn(genotype, width=120).splitlines()]
        assert read_back(right) == written(genotype.reduce)

    def test_colour_changes_nothing_but_colour(self):
        genotype = random_genotype(1)
        coloured = drawn(genotype, force_terminal=True, color_system="truecolor", no_color=False)
        assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == drawn(genotype)
        red, green, blue = (int(RULE_COLORS["usf"][k : k + 2], 16) for k in (1, 3, 5))
        assert f"38;2;{red};{green};{blue}" in coloured

    def test_ascii(self):
        text = drawn(random_genotype(2), encoding="ascii")
        assert all(edge.candidate.operation in text for edge in random_genotype(2).normal.edges)

    def test_a_rule_of_the_users_own_is_never_cut_off(self, monkeypatch):
        class Own(rules.Rule):
            name = "a_rule_with_a_name_that_is_a_good_deal_longer_than_any_of_ours"

        monkeypatch.setitem(rules._registry._items, Own.name, Own())
        text = drawn(random_genotype(0).with_rule(Own.name))
        weighted = [e for c in random_genotype(0).cells.values() for e in c.edges if e.candidate.rule]
        assert text.count(f" {Own.name} ─") == len(weighted)


SVG = "{http://www.w3.org/2000/svg}"


def labels(root: ElementTree.Element) -> Counter:
    """Read the (operation, rule) of every label in a picture."""
    texts = ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]
    pairs = itertools.zip_longest(texts, texts[1:], fillvalue="")
    return Counter((a, b if b in rules.names() else None) for a, b in pairs if a in operation_names())


class TestFigure:
    @pytest.mark.parametrize("genotype", GENOTYPES)
    def test_every_edge_is_labelled(self, genotype, tmp_path):
        draw_figure(genotype, tmp_path / "cells.svg")
        edges = [edge for found in genotype.cells.values() for edge in found.edges]
        root = ElementTree.parse(tmp_path / "cells.svg").getroot()
        assert labels(root) == Counter((e.candidate.operation, e.candidate.rule) for e in edges)
        text = " ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))
        assert genotype.hash in text
        for rule, count in Counter(e.candidate.rule for e in edges).items():
            assert re.search(rf"{rule or 'no weights'}\s+×{count}\b", text)

    @pytest.mark.parametrize("genotype", GENOTYPES)
    def test_lines_lead_from_source_to_node(self, genotype):
        for found in genotype.cells.values():
            layout = lay_out(found)
            ends = [(route.edge, route.items[0], route.items[-1]) for route in layout.routes]
            nodes = [(edge, i + 2) for i, edges in enumerate(found.nodes) for edge in edges]
            assert ends[: len(nodes)] == [(e, layout.states[e.source], layout.states[node]) for e, node in nodes]
            assert ends[len(nodes) :] == [(None, layout.states[state], layout.output) for state in found.concat]
            for route in layout.routes:
                layers = [item.layer for item in route.items]
                assert layers == list(range(layers[0], layers[-1] + 1))

    @pytest.mark.parametrize("genotype", GENOTYPES)
    def test_nothing_overlaps(self, genotype):
        for found in genotype.cells.values():
            for layer in lay_out(found, gap=0.1).layers:
                for lower, upper in itertools.pairwise(sorted(layer, key=lambda item: item.y)):
                    assert upper.y - lower.y >= (lower.height + upper.height) / 2 + 0.1 - 1e-9
        canvas = FigureCanvasAgg(genotype_figure(genotype))
        canvas.draw()
        page = canvas.figure.bbox
        boxes = [(text.get_text(), text.get_window_extent()) for text in canvas.figure.axes[0].texts]
        for name, box in boxes:
            assert page.containsx(box.x0) and page.containsx(box.x1), name
            assert page.containsy(box.y0) and page.containsy(box.y1), name
        for (name, box), (other, another) in itertools.combinations(boxes, 2):
            # The two lines of a label are close: only their descenders may touch.
            assert not box.padded(-2).overlaps(another.padded(-2)), (name, other)

    def test_states_have_the_numbers_of_the_json(self, tmp_path):
        draw_figure(random_genotype(0), tmp_path / "cells.svg")
        root = ElementTree.parse(tmp_path / "cells.svg").getroot()
        texts = ["".join("".join(element.itertext()).split()) for element in root.iter(f"{SVG}text")]
        # One per cell: the two inputs with what they are, the four nodes.
        assert all(texts.count(str(state)) == 2 for state in (2, 3, 4, 5))
        assert sum(text.startswith(("0=", "1=")) for text in texts) == 4

    def test_one_cell(self, tmp_path):
        genotype = Genotype(WIDE, SMALLEST)
        draw_figure(genotype, tmp_path / "cell.svg", cell="reduce")
        root = ElementTree.parse(tmp_path / "cell.svg").getroot()
        assert labels(root) == Counter([("skip_connect", "usf")])
        text = drawn(genotype, width=40)
        _, normal, _ = re.split(r"^(?:normal|reduce) cell$", text, flags=re.MULTILINE)
        buffer = io.StringIO()
        draw_genotype(genotype, Console(file=buffer, width=40), cell="normal")
        assert normal.strip() in buffer.getvalue() and "reduce" not in buffer.getvalue()
        for draw in (draw_figure, draw_genotype):
            with pytest.raises(InputError, match="unknown cell 'normla'; did you mean 'normal'"):
                draw(genotype, tmp_path / "no.svg", cell="normla")
        assert not (tmp_path / "no.svg").exists()

    def test_the_width_of_a_line_grows_with_the_lead(self):
        genotype = Genotype(WIDE, SMALLEST)
        ratios = [1.0, 1.25, 1.5, 2.0, 9.0, 1.0, 1.5]
        lines = [
            patch.get_linewidth()
            for patch in genotype_figure(genotype, ratios).axes[0].patches
            if isinstance(patch, PathPatch) and patch.get_edgecolor() != to_rgba(MUTED)
        ]
        expected = [0.9 + 3.6 * min(ratio - 1, 1) for ratio in ratios]
        assert lines == pytest.approx(expected)

    def test_pdf(self, tmp_path):
        for name in ("a.pdf", "b.pdf"):
            draw_figure(random_genotype(0), tmp_path / name)
        content = (tmp_path / "a.pdf").read_bytes()
        assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
        assert content == (tmp_path / "b.pdf").read_bytes()

    def test_png(self, tmp_path):
        draw_figure(random_genotype(0), tmp_path / "cells.PNG")
        assert (tmp_path / "cells.PNG").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def test_same_genotype_same_bytes(self, tmp_path):
        for name in ("a.svg", "b.svg"):
            draw_figure(random_genotype(0), tmp_path / name)
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

    @pytest.mark.parametrize("name", ["cells.jpeg", "cells"])
    def test_unknown_format(self, name, tmp_path):
        with pytest.raises(InputError, match=r"known: svg, png, pdf"):
            draw_figure(random_genotype(0), tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot write .*missing/cells\.svg"):
            draw_figure(random_genotype(0), tmp_path / "missing" / "cells.svg")

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(28, "No space left on device")

        path = tmp_path / "cells.svg"
        path.write_text("old")
        monkeypatch.setattr("os.replace", refuse)
        with pytest.raises(InputError, match="No space left"):
            draw_figure(random_genotype(0), path)
        assert [p.name for p in tmp_path.iterdir()] == ["cells.svg"]
        assert path.read_text() == "old"


class TestColors:
    def test_known_rules_differ(self):
        assert set(RULE_COLORS) <= set(rules.names())
        every = (*RULE_COLORS, *OWN_RULE_COLORS, None)
        assert len({rule_color(rule) for rule in every}) == len(every)

    def test_a_users_rule_keeps_its_colour(self):
        # A literal, because hash() of a string differs between processes.
        assert rule_color("ternary") == "#44aa99"


class TestShares:
    def test_uniform_alpha(self):
        shares = rule_shares(np.zeros((14, 22)), get_space("bionas"))
        expected = {None: 3 / 22, "usf": 5 / 22, "brsf": 5 / 22, "frsf": 5 / 22, "fa": 4 / 22}
        assert shares.keys() == expected.keys()
        for rule, share in expected.items():
            np.testing.assert_allclose(shares[rule], [share] * 4)

    def test_nodes_are_told_apart(self):
        space = get_space("bionas")
        alpha = np.zeros((14, 22))
        fa = [k for k, candidate in enumerate(space.candidates) if candidate.rule == "fa"]
        alpha[2, fa] = 800.0  # the first of the three edges into node 1
        np.testing.assert_allclose(rule_shares(alpha, space)["fa"], [4 / 22, (1 + 8 / 22) / 3, 4 / 22, 4 / 22])

    def test_found_edges(self):
        shares = edge_shares(Genotype(WIDE, SMALLEST), "normal")
        expected = {None: [1 / 3, 0, 1], "fa": [1 / 3, 0, 0], "dfa": [1 / 3, 0, 0], "bp": [0, 1, 0]}
        assert {rule: list(share) for rule, share in shares.items()} == expected


METRICS = (
    {"epoch": 1, "train_loss": 2.25, "valid_loss": 2.5, "train_accuracy": 0.125, "seconds": 13.0},
    {"epoch": 2, "train_loss": 1.0, "valid_accuracy": 94.71234, "alpha_entropy": None},
    {"epoch": 3, "note": "<b>", "valid_accuracy": 94.71234},
)


def report(folder, **changes) -> str:
    rng = np.random.default_rng(0)
    arguments = {
        "genotype": random_genotype(0),
        "settings": {"optimizer": {"lr": 0.025}, "note": "<script>alert('a & b')</script>"},
        "metrics": METRICS,
        "alphas": {kind: rng.normal(size=(len(METRICS) + 1, 14, 22)) for kind in ("normal", "reduce")},
        "space": get_space("bionas"),
        "machine": {"processor": "A & B", "command": "bionas-fast search --seed 0", "date": "2026-01-02"},
    }
    write_report(write_search(folder, **{**arguments, **changes}))
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return report(tmp_path_factory.mktemp("run one"))


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


class TestReport:
    def test_parts(self, page):
        assert page.tags["svg"] == 5
        for heading in (
            "The cells",
            "Learning rules",
            "α over time",
            "Training",
            "Configuration",
            "Machine",
        ):
            assert heading in page.words
        for words in (random_genotype(0).hash, "optimizer.lr", "0.025", "94.71 %", "A & B", "2.25", "2026-01-02"):
            assert words in page.text

    def test_every_edge_is_drawn(self, page):
        edges = [str(e.candidate) for c in random_genotype(0).cells.values() for e in c.edges]
        words = [word.strip() for word in page.words if word.strip()]
        pairs = Counter(
            f"{a}@{b}" if b in rules.names() else a
            for a, b in itertools.pairwise(words[: words.index("As JSON")])
            if a in operation_names()
        )
        assert pairs == Counter(edges)

    def test_fetches_nothing(self, text, page):
        assert all(reference.startswith("#") for reference in page.references)
        assert "http:" not in text and "https:" not in text and "@import" not in text
        assert not set(page.tags) & {"script", "link", "iframe", "object", "img"}

    def test_references_inside_the_page_resolve(self, page):
        assert page.references
        assert {reference[1:] for reference in page.references} <= set(page.ids)
        assert max(page.ids.values()) == 1

    def test_text_is_escaped(self, text, page):
        assert "<script>alert('a & b')</script>" in page.text
        assert "<script" not in text
        assert "<b>" in page.words

    def test_commands_name_the_run(self, page):
        command = next(word for word in page.words if word.startswith("bionas-fast train "))
        assert re.fullmatch(r"bionas-fast train '.*run one\d*'", command)

    def test_without_alpha_and_metrics(self, tmp_path):
        page = Page(report(tmp_path, alphas={}, metrics=[], settings={}, machine={}))
        assert page.tags["svg"] == 2
        assert "α over time" not in page.words and "Training" not in page.words

    def test_smallest_genotype(self, tmp_path):
        found = Genotype(SMALLEST, WIDE)
        Page(report(tmp_path, genotype=found, alphas={}, metrics=[{"epoch": 1, "train_loss": 1.0}]))

    @pytest.mark.parametrize(
        ("alpha", "message"),
        [
            (np.zeros((3, 14, 21)), r"alphas\['normal'\] has shape \[3, 14, 21\].*\[epochs \+ 1, 14, 22\]"),
            (np.zeros((14, 22)), r"has shape \[14, 22\]"),
            (np.full((3, 14, 22), np.nan), r"not finite"),
        ],
        ids=["candidates", "axes", "nan"],
    )
    def test_alpha_that_does_not_fit(self, alpha, message, tmp_path):
        (tmp_path / "report.html").write_text("old")
        with pytest.raises(InputError, match=message):
            report(tmp_path, alphas={"normal": alpha, "reduce": alpha})
        assert (tmp_path / "report.html").read_text() == "old"
