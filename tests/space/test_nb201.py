"""NAS-Bench-201 cells with learning rules: space, both engines, strings, genotype networks, a search."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import report
from bionas_fast.cli import app
from bionas_fast.errors import InputError
from bionas_fast.space import (
    NB201,
    Candidate,
    Cell,
    Edge,
    Space,
    derive_genotype,
    get_space,
    mutated,
    one_hot,
    random_genotype,
)
from bionas_fast.space.cells import CellShape
from bionas_fast.space.operations import ResidualReduction
from bionas_fast.supernet import Mixture, SupernetOptions
from bionas_fast.supernet.modular import ModularCell
from helpers.pages import write_search
from helpers.supernets import gradients, relative
from helpers.tolerances import ENGINES, GRADIENT_FLOAT64, OUTPUT_FLOAT64, POPULATIONS, SAME_BITS

EVERY_3X3 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
MIXED = "|nor_conv_1x1@usf~0|+|none~0|avg_pool_3x3~1|+|skip_connect@brsf~0|none~1|nor_conv_3x3@fa~2|"
NOTHING = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
SMALL = {"channels": 4, "cells": 1, "num_classes": 5, "in_channels": 2}
ALL_RULES = Space(
    "all-rules",
    (
        Candidate("none"),
        *(Candidate("nor_conv_3x3", rule) for rule in ("bp", "fa", "usf", "brsf", "frsf", "dfa")),
        *(Candidate("skip_connect", rule) for rule in ("bp", "usf", "brsf", "frsf")),
    ),
    nodes=2,
    skeleton=NB201,
)


def test_the_space():
    space = get_space("nb201")
    assert [str(candidate) for candidate in space.candidates] == [
        "none",
        "avg_pool_3x3",
        *(f"skip_connect@{rule}" for rule in ("usf", "brsf", "frsf")),
        *(f"nor_conv_{k}x{k}@{rule}" for k in (1, 3) for rule in ("fa", "usf", "brsf", "frsf")),
    ]
    assert space.edges == ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))
    net = bf.build_supernet(space, **SMALL)
    assert {kind: tuple(alpha.shape) for kind, alpha in net.alphas.items()} == {"cell": (6, 13)}


class TestStrings:
    @pytest.mark.parametrize("text", [EVERY_3X3, MIXED, NOTHING, "|skip_connect@bp~0|+|none~0|dil_conv_3x3@usf~1|"])
    def test_round_trip(self, text):
        genotype = bf.Genotype.from_nb201(text)
        assert genotype.to_nb201() == text.replace("@bp", "")
        assert bf.Genotype.from_nb201(genotype.to_nb201()) == genotype
        read = bf.Genotype.from_json(genotype.to_json())
        assert read == genotype
        assert read.hash == genotype.hash

    def test_meaning(self):
        genotype = bf.Genotype.from_nb201(MIXED)
        nodes = [[str(edge) for edge in edges] for edges in genotype.cells["cell"].nodes]
        assert nodes == [["nor_conv_1x1@usf<-0"], ["avg_pool_3x3<-1"], ["skip_connect@brsf<-0", "nor_conv_3x3@fa<-2"]]
        assert genotype.cells["cell"].concat == (3,)
        assert genotype.rules == ("usf", "brsf", "fa")
        assert genotype.with_rule("bp").to_nb201() == (
            "|nor_conv_1x1~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
        )

    def test_edges_in_any_order(self):
        assert bf.Genotype.from_nb201("|none~0|+|nor_conv_1x1~1|skip_connect~0|").to_nb201() == (
            "|none~0|+|skip_connect~0|nor_conv_1x1~1|"
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "node 1: expected edges between bars"),
            ("|nor_conv_3x3~0|+", r"node 2: expected edges between bars.*got ''"),
            ("|nor_conv_3x3~0", r"node 1: expected edges between bars"),
            ("|nor_conv_3x3|", "node 1, edge 0: 'nor_conv_3x3' has no source"),
            ("|nor_conv_3x3~x|", "node 1, edge 0: source 'x'"),
            ("|none~0|+|none~0|nor_conv_3x4~1|", "node 2, edge 1: unknown operation 'nor_conv_3x4'.*'nor_conv_3x3'"),
            ("|nor_conv_3x3@ufs~0|", "node 1, edge 0: unknown rule 'ufs'.*'usf'"),
            ("|avg_pool_3x3@usf~0|", "node 1, edge 0: .*takes no rule"),
            ("|none~0|+|none~0|", r"node 2: expected one edge from each of the states 0 to 1, got \[0\]"),
            ("|none~0|+|none~1|none~1|", r"node 2: .*got \[1, 1\]"),
            ("|none~1|", r"node 1: .*states 0 to 0, got \[1\]"),
        ],
    )
    def test_bad_strings(self, text, message):
        with pytest.raises(InputError, match=message):
            bf.Genotype.from_nb201(text)

    def test_cells_of_darts_have_no_such_string(self):
        cell = Cell(((Edge.parse("skip_connect@bp<-0"),),), (2,))
        with pytest.raises(InputError, match="one cell; this genotype has normal, reduce"):
            bf.Genotype(cell, cell).to_nb201()

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (("<-2", "<-3"), r"cell\.nodes\[2\]\[1\]: source 3 .* sees states 0 to 2"),
            (("fa<-2", "fa<-0"), r"cell\.nodes\[2\]\[1\]: a second edge from state 0"),
            (("[3]", "[2]"), r"cell\.concat: the output is the last node, \[3\]; got \[2\]"),
            (("avg_pool_3x3", "none"), "omit the edge"),
            (('"cell"', '"normal"'), "'reduce' is missing"),
            (('"fixed"', '"reduce"'), "unknown entry 'cell'"),
        ],
    )
    def test_bad_json(self, edit, message):
        text = bf.Genotype.from_nb201(MIXED).to_json()
        assert edit[0] in text
        with pytest.raises(InputError, match=message):
            bf.Genotype.from_json(text.replace(*edit))

    def test_cells_must_belong_together(self):
        cell = bf.Genotype.from_nb201(MIXED).cells["cell"]
        with pytest.raises(InputError, match="expected the cells normal and reduce or cell"):
            bf.Genotype(cell, cell)
        with pytest.raises(InputError, match="got normal"):
            bf.Genotype(cell)


def test_derivation_takes_the_best_of_every_edge():
    space = get_space("nb201")
    alpha = torch.randn(6, 13, generator=torch.Generator().manual_seed(0))
    alpha[1, 0] = 5  # none
    best = [str(space.candidates[k]) for k in alpha.argmax(1)]
    assert best[1] == "none"
    texts = [f"{name}~{source}|" for name, (_, source) in zip(best, space.edges, strict=True)]
    expected = "+".join("|" + "".join(texts[a:b]) for a, b in ((0, 1), (1, 3), (3, 6)))
    assert derive_genotype({"cell": alpha}, space).to_nb201() == expected


def words(genotype):
    return genotype.to_nb201().replace("+", "").strip("|").split("|")


def test_mutations_change_one_edge():
    space, generator = get_space("nb201"), torch.Generator().manual_seed(0)
    genotype = random_genotype(space, generator)
    seen = set()
    for _ in range(300):
        child = mutated(genotype, space, generator)
        changed = [(old, new) for old, new in zip(words(genotype), words(child), strict=True) if old != new]
        assert len(changed) == 1
        seen.add(changed[0][1])
        genotype = child
    names = {word.partition("~")[0] for word in seen}
    assert names == {str(candidate) for candidate in space.candidates}
    assert {word.partition("~")[2] for word in seen} == {"0", "1", "2"}


def test_one_hot_weights_are_the_cell_of_the_genotype():
    """A supernet cell with the weights of a genotype has its wiring: with identities, x, 0 and x + x + 0."""
    space = get_space("nb201")
    genotype = bf.Genotype.from_nb201(
        "|skip_connect@usf~0|+|none~0|none~1|+|skip_connect@usf~0|skip_connect@frsf~1|skip_connect@usf~2|"
    )
    cell = ModularCell(space, 1, CellShape((3,), 3, False, False, rule="bp", affine=False))
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(cell([x], one_hot(genotype, space)["cell"]), 2 * x)


def parameters(text, channels, cells, in_channels=3, classes=10):
    """Parameters counted by hand: stem, cells of three stages, two residual blocks, BN and classifier."""
    kernels = [1 if "1x1" in word else 3 for word in text.split("|") if word.startswith("nor_conv")]
    total = 9 * in_channels * channels + 2 * channels
    for c in (channels, 2 * channels, 4 * channels):
        total += cells * sum(k * k * c * c + 2 * c for k in kernels)
    for c in (channels, 2 * channels):
        total += 9 * c * 2 * c + 4 * c + 9 * 4 * c * c + 4 * c + 2 * c * c
    return total + 8 * channels + (4 * channels + 1) * classes


class TestGenotypeNetwork:
    @pytest.mark.parametrize(
        ("text", "count"),
        # In the published benchmark: 1.531546 M and, without any convolution, 0.073306 M.
        [(EVERY_3X3, 1_531_546), (NOTHING, 73_306), (MIXED, None)],
        ids=["every_3x3", "nothing", "mixed"],
    )
    def test_parameters(self, text, count):
        network = bf.build_network(bf.Genotype.from_nb201(text), channels=16, cells=5)
        own = sum(p.numel() for p in network.parameters())
        assert own == parameters(text, 16, 5)
        assert count in (own, None)

    def test_a_cell_by_hand(self):
        network = bf.build_network(bf.Genotype.from_nb201(MIXED), channels=3, cells=1).double().eval()
        cell = network.cells[0]
        x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
        scale = (1 + 1e-5) ** -0.5  # scale of batch normalisation before any step
        node1 = F.conv2d(x.relu(), cell.edges[0][1].weight) * scale
        node2 = F.avg_pool2d(node1, 3, 1, 1, count_include_pad=False)
        expected = x + F.conv2d(node2.relu(), cell.edges[3][1].weight, padding=1) * scale
        torch.testing.assert_close(cell([x], 0.0), expected)
        assert [edge[1].rule for edge in (cell.edges[0], cell.edges[3])] == ["usf", "fa"]

    def test_a_residual_block_by_hand(self):
        block = ResidualReduction(3, 6, "usf", True).double().eval()
        x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
        scale = (1 + 1e-5) ** -0.5
        once = F.conv2d(x.relu(), block.conv1[1].weight, stride=2, padding=1) * scale
        twice = F.conv2d(once.relu(), block.conv2[1].weight, padding=1) * scale
        pooled = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        torch.testing.assert_close(block(x), twice + F.conv2d(pooled, block.shortcut[1].weight))
        assert block(torch.randn(1, 3, 5, 7, dtype=torch.float64)).shape == (1, 6, 3, 4)

    def test_skeleton(self):
        genotype = bf.Genotype(cell=bf.Genotype.from_nb201(MIXED).cells["cell"], fixed={"preprocess": "usf"})
        network = bf.build_network(genotype, cells=2, channels=3, auxiliary=True)
        network.drop_path = 0.5
        kinds = [type(cell).__name__ for cell in network.cells]
        assert kinds == [*["GenotypeCell"] * 2, "ResidualReduction"] * 2 + ["GenotypeCell"] * 2
        assert network.cells[2].conv1[1].rule == "usf"
        logits, auxiliary = network(torch.randn(4, 3, 9, 9))
        assert logits.shape == auxiliary.shape == (4, 10)
        (logits + auxiliary).logsumexp(1).sum().backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_an_empty_cell_still_runs(self):
        network = bf.build_network(bf.Genotype.from_nb201(NOTHING), cells=1, channels=2)
        network(torch.randn(2, 3, 8, 8)).sum().backward()


def test_wiring_of_the_supernet():
    """With identities only, the nodes are x, 2x and 4x; the last one is the output."""
    space = get_space("nb201")
    cell = ModularCell(space, 1, CellShape((3,), 3, False, False, rule="bp", affine=False))
    weights = torch.zeros(6, 13)
    weights[:, [str(c) for c in space.candidates].index("skip_connect@usf")] = 1
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(cell([x], weights), 4 * x)


def both(space, **settings):
    return tuple(bf.build_supernet(space, engine=e, seed=3, **{**SMALL, **settings}) for e in ("modular", "stacked"))


MIXTURE = Mixture(factorised=True, edge_normalisation=True, partial_channels=2)


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ("nb201", {"options": SupernetOptions(fixed={"stem": "usf", "preprocess": "brsf"})}),
        (ALL_RULES, {"channels": 3, "cells": 2}),
        (
            "nb201",
            {"options": SupernetOptions(mixture=Mixture(factorised=True, edge_normalisation=True, partial_channels=2))},
        ),
    ],
    ids=["nb201", "all_rules", "mixture"],
)
def test_same_function_in_both_engines(space, settings):
    """Outputs, gradients of images, alphas and weights, statistics, streams; over two batches in float64."""
    modular, stacked = (net.double() for net in both(space, **settings))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = torch.randn(3, 2, 7, 6, generator=generator, dtype=torch.float64)
        images = [x.clone().requires_grad_() for _ in range(2)]
        outputs = []
        for net, image in zip((modular, stacked), images, strict=True):
            net.zero_grad()
            outputs.append(net(image))
            F.cross_entropy(outputs[-1], torch.arange(3)).backward()
        assert relative(outputs[1], outputs[0]) < OUTPUT_FLOAT64
        assert relative(images[1].grad, images[0].grad) < GRADIENT_FLOAT64
        for own, theirs in zip(stacked.alpha_parameters(), modular.alpha_parameters(), strict=True):
            assert theirs.grad.abs().max() > 0
            assert relative(own.grad, theirs.grad) < GRADIENT_FLOAT64
        expected = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in modular.named_parameters()}
        largest = max(grad.abs().max() for grad in expected.values())
        for name, grad in gradients(stacked).items():
            error = (grad - expected[name]).abs().max()
            assert error < GRADIENT_FLOAT64 * expected[name].abs().max() + OUTPUT_FLOAT64 * largest, name
    theirs = stacked.to_modular().state_dict()
    for name, value in modular.state_dict().items():
        torch.testing.assert_close(theirs[name], value, **ENGINES, msg=name)
    assert stacked.genotype() == modular.genotype()


@pytest.mark.parametrize("partial_channels", [1, 2])
def test_population(partial_channels):
    modular, stacked = (
        net.double()
        for net in both("nb201", options=SupernetOptions(mixture=Mixture(partial_channels=partial_channels)))
    )
    with torch.no_grad():
        modular(2 * torch.randn(8, 2, 6, 6, dtype=torch.float64) + 1)
    stacked.load_modular(modular)
    generator = torch.Generator().manual_seed(1)
    mixing = {"cell": torch.softmax(3 * torch.randn(4, 6, 13, generator=generator, dtype=torch.float64), -1)}
    x = torch.randn(3, 2, 7, 6, generator=generator, dtype=torch.float64)
    modular.eval(), stacked.eval()
    expected = torch.stack([modular(x, {"cell": own}) for own in mixing["cell"]])
    torch.testing.assert_close(modular.population(x, mixing), expected, **SAME_BITS)
    torch.testing.assert_close(stacked.population(x, mixing), expected, **POPULATIONS)


class TestReports:
    @pytest.mark.parametrize("text", [EVERY_3X3, MIXED, NOTHING, "|none~0|+|skip_connect~0|none~1|"])
    def test_drawings(self, text, tmp_path):
        genotype = bf.Genotype.from_nb201(text)
        console = Console(record=True, width=100, file=io.StringIO())
        report.draw_genotype(genotype, console)
        drawn = console.export_text()
        edges = genotype.cells["cell"].edges
        for name in ("nor_conv_1x1", "nor_conv_3x3", "skip_connect", "avg_pool_3x3", "none"):
            assert drawn.count(name) == sum(edge.candidate.operation == name for edge in edges)
        assert "cell cell" not in drawn
        report.draw_figure(genotype, tmp_path / "cell.svg")
        svg = (tmp_path / "cell.svg").read_text()
        assert svg.count("nor_conv_3x3") == sum(edge.candidate.operation == "nor_conv_3x3" for edge in edges)
        assert "none" not in svg.replace(": none", "")

    @pytest.mark.parametrize("text", [MIXED, NOTHING])
    def test_page(self, text, tmp_path):
        alphas = {"cell": np.random.default_rng(0).normal(size=(3, 6, 13))}
        report.write_report(write_search(tmp_path, bf.Genotype.from_nb201(text), get_space("nb201"), alphas=alphas))
        page = (tmp_path / "report.html").read_text()
        assert "cell, by α" in page
        assert "node 3" in page
        assert "node 0" not in page  # the input, as the benchmark counts


def test_search_show_and_train_from_the_command_line(tmp_path, capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as stop:
            app.main([str(word) for word in arguments])
        printed = capsys.readouterr()
        assert stop.value.code == 0, printed.err
        return printed.out

    run, trained = tmp_path / "search", tmp_path / "trained"
    small = ("--channels", 4, "--cells", 1, "--epochs", 1, "--batch-size", 256)
    assert "run folder" in command("search", "--space", "nb201", *small, "--out", run)
    genotype = bf.Genotype.load(run / "genotype.json")
    assert list(genotype.cells) == ["cell"]
    assert np.load(run / "alphas.npz")["cell"].shape == (2, 6, 13)
    (tmp_path / "cell.txt").write_text(MIXED + "\n")
    assert "skip_connect  brsf" in command("show", tmp_path / "cell.txt", "--save", tmp_path / "cell.png")
    # After one epoch of search a cell may be disconnected and learn nothing; this one is not.
    (run / "genotype.json").write_text(bf.Genotype.load(tmp_path / "cell.txt").to_json())
    small = ("--channels", 8, "--cells", 1, "--epochs", 3)
    assert "test accuracy" in command("train", run, *small, "--out", trained)
    network = bf.load(trained)
    data = bf.load_dataset("digits")
    found = bf.evaluate(network, data.test)
    assert found["accuracy"] > 60
