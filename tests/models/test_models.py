"""Genotype networks and their training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bionas_fast as bf
from bionas_fast import InputError, rules
from bionas_fast.nn import FeedbackLayer
from bionas_fast.runs.folder import RunFolder
from helpers.genotypes import GENOTYPE, random_genotype

SMALL = bf.TrainConfig(channels=2, cells=3, epochs=1, batch_size=256)


@pytest.mark.parametrize("seed", range(3))
def test_layers_follow_the_genotype(seed):
    genotype = random_genotype(seed)
    net = bf.build_network(genotype, channels=4, cells=3, num_classes=10)
    for cell in net.cells:
        for edge, module in zip(genotype.cells[cell.kind].edges, cell.edges, strict=True):
            found = {m.rule for m in module.modules() if isinstance(m, FeedbackLayer)}
            assert found == ({edge.candidate.rule} if edge.candidate.rule else set())
    # Affine normalisation everywhere, none after pools.
    assert all(m.affine for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    pools = [m for cell in net.cells for m in cell.edges if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d))]
    weightless = sum(edge.candidate.rule is None for cell in net.cells for edge in genotype.cells[cell.kind].edges)
    assert len(pools) == weightless
    assert not any(p.count_include_pad for p in pools if isinstance(p, nn.AvgPool2d))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (16, 5)], ids=str)
def test_a_cell_by_hand(size):
    """Compute the output of the first cell from its modules, edge by edge."""
    net = bf.build_network(GENOTYPE, channels=4, cells=3).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    s = net.stem(x)
    cell = net.cells[0]
    s0, s1 = cell.preprocess0(s), cell.preprocess1(s)
    node0 = cell.edges[0](s0) + cell.edges[1](s1)
    node1 = cell.edges[2](s1) + cell.edges[3](node0)
    torch.testing.assert_close(cell([s, s], 0.0), torch.cat([node0, node1], dim=1))
    assert net(x).shape == (2, 10)


def test_drop_path_zeroes_images_of_an_edge_and_keeps_the_mean():
    cell = bf.build_network(GENOTYPE, channels=2, cells=3).cells[0]
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 1, 1)
    paths = cell._draw_paths(x, 0.25)
    assert list(paths.masks) == [0, 2, 3]  # the others are identities
    y = paths.drop(0, x)
    assert torch.equal(y[:, 0, 0, 0], paths.factors([2, 0])[1])
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean() == pytest.approx(1, abs=0.03)  # standard error 0.009
    assert paths.drop(1, x) is x
    assert cell._draw_paths(x, 0.0).factors([0]) is None


def test_drop_path_is_an_argument_of_forward():
    """The argument of forward overrides the attribute in training; evaluation ignores both."""
    plain, dropping = (bf.build_network(GENOTYPE, channels=4, cells=3) for _ in range(2))
    dropping.drop_path = 0.5
    x = torch.randn(8, 3, 8, 8)

    def logits(net, *drop_path):
        torch.manual_seed(0)
        return net(x, *drop_path)

    assert torch.equal(logits(plain, 0.5), logits(dropping))
    assert torch.equal(logits(plain), logits(dropping, 0.0))
    assert not torch.equal(logits(plain), logits(plain, 0.5))
    assert torch.equal(logits(plain.eval()), logits(plain, 0.5))
    plain.train()
    for probability in (1.0, -0.1):
        plain.drop_path = probability
        for call in (lambda: plain(x), lambda: dropping(x, plain.drop_path)):
            with pytest.raises(InputError, match="drop_path: expected 0 <= drop_path < 1"):
                call()


@pytest.mark.parametrize("size", [8, 16, 33])
def test_auxiliary_head_in_training_only(size):
    net = bf.build_network(GENOTYPE, channels=2, cells=3, auxiliary=True, num_classes=5)
    x = torch.randn(2, 3, size, size)
    logits, auxiliary = net(x)
    assert logits.shape == auxiliary.shape == (2, 5)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.eval()(x).shape == (2, 5)


@pytest.mark.parametrize("rule", rules.names())
def test_every_single_rule_trains(rule):
    """Thirty steps on one batch lower the loss under every rule, including dfa, whose error comes from the logits."""
    torch.manual_seed(0)
    net = bf.build_network(GENOTYPE.with_rule(rule), channels=4, cells=2, in_channels=1)
    skips = {"usf"} if rules.get(rule).random_sign else set()
    found = {m.rule for m in net.cells.modules() if isinstance(m, FeedbackLayer)}
    assert found - {"bp"} == ({rule} | skips) - {"bp"}
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_training_reaches_95_percent_on_digits(tmp_path):
    """Train with mixed rules through the library; the network loaded from the folder is the same.

    Not with seed 0, whose accuracy of 94.7 to 95 % depends on how the processor rounds; seeds 1 to 4 reach 96.7 %.
    """
    result = bf.train(GENOTYPE, bf.TrainConfig(seed=1), out=tmp_path / "run")
    assert result.test_accuracy >= 95
    assert {p.name for p in result.run_dir.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoint.pt",
        "genotype.json",
        "evaluation.json",
        "report.html",
    }
    loaded = bf.load(result.run_dir)
    assert not loaded.training
    data = bf.load_dataset("digits")
    again = bf.evaluate(loaded, data.test)
    assert again["accuracy"] == result.test_accuracy
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(x), result.network(x))


def test_comparison_covers_every_rule(tmp_path):
    table = bf.compare_rules(GENOTYPE, SMALL, out=tmp_path)
    accuracies = {series.name: series.values[SMALL.seed] for series in table.series}
    assert list(accuracies) == ["genotype", *rules.names()]
    assert all(0 <= accuracy <= 100 for accuracy in accuracies.values())
    assert accuracies["bp"] == bf.train(GENOTYPE.with_rule("bp"), SMALL, out=False).test_accuracy


def test_evaluate_by_hand():
    net = bf.build_network(GENOTYPE, channels=2, cells=1, in_channels=1)
    data = bf.load_dataset("digits")
    net.train()
    metrics = bf.evaluate(net, data.test, batch_size=100)
    assert net.training
    with torch.no_grad():
        logits = net.eval()((data.test_images - data.mean[0]) / data.std[0])
    assert metrics["accuracy"] == pytest.approx(100 * (logits.argmax(1) == data.test_labels).double().mean().item())
    expected = nn.functional.cross_entropy(logits, data.test_labels).item()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_load_refuses_other_folders(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        bf.load(tmp_path / "none")
    with pytest.raises(InputError, match="holds no run"):
        bf.load(tmp_path)
    result = bf.train(GENOTYPE, SMALL, out=tmp_path / "run")
    folder = RunFolder.open(result.run_dir)
    config = (folder.path / "config.yaml").read_text()
    folder.write("config.yaml", config.replace("kind: train", "kind: search"))
    with pytest.raises(InputError, match="no trained network"):
        bf.load(folder.path)
    folder.write("config.yaml", config)
    folder.write("genotype.json", GENOTYPE.with_rule("usf").to_json().replace("sep_conv_3x3", "sep_conv_5x5"))
    with pytest.raises(InputError, match="does not fit"):
        bf.load(folder.path)


def test_training_refuses_bad_settings(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        bf.train(GENOTYPE, SMALL, out=tmp_path)
    with pytest.raises(InputError, match=r"the training loss or its gradient .* not finite .* learning_rate = 1000000"):
        bf.train(GENOTYPE, SMALL.with_settings(learning_rate=1e6, gradient_clip=1e6, epochs=3), out=False)


def test_direct_feedback_is_shared_by_the_layers_that_meet_at_a_state():
    """B is uniform in ±bound / n, n the layers with dfa on the edges from a state; also redrawn for another head."""
    genotype = GENOTYPE.with_rule("dfa")
    net = bf.build_network(genotype, channels=8, cells=3, num_classes=50)
    for classes in (50, 60):
        if classes == 60:
            net.classifier = nn.Linear(net.classifier.in_features, 60)
            bf.nn.connect_direct_feedback(net, 60)
        for cell in net.cells:
            edges = [edge for node in genotype.cells[cell.kind].nodes for edge in node]
            for source in {edge.source for edge in edges}:
                modules = [m for edge, m in zip(edges, cell.edges, strict=True) if edge.source == source]
                layers = [m for module in modules for m in module.modules() if getattr(m, "rule", None) == "dfa"]
                for layer in layers:
                    shape = layer.feedback.shape
                    assert shape[0] == classes
                    bound = rules.get_law(layer.feedback_init, tuple(shape)).bound / len(layers)
                    assert 0.95 * bound < layer.feedback.abs().max() <= bound * (1 + 1e-6)
    plain = bf.nn.Linear(4, 3, rule="dfa", num_classes=50)
    assert plain.feedback.abs().max() > 0.9 * rules.get_law("default", (50, 4)).bound
