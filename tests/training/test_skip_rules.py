"""The rule of every layer of a trained network: skip connections under a single rule, and settings of its search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import bionas_fast as bf
from bionas_fast import rules
from bionas_fast.cli.app import main
from bionas_fast.models import GenotypeNetwork
from bionas_fast.nn import FeedbackLayer
from bionas_fast.searching import SearchConfig
from bionas_fast.space import Genotype
from bionas_fast.supernet import SupernetOptions
from helpers.genotypes import GENOTYPE

NB201 = Genotype.from_nb201("|nor_conv_3x3@usf~0|+|none~0|skip_connect@brsf~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|")
SMALL = {"dataset": "digits", "epochs": 1, "channels": 1, "cells": 3, "batch_size": 1024}


def rules_of(network: GenotypeNetwork) -> Iterator[tuple[str, str, str, str]]:
    """Yield (kind of cell, operation, rule in the unchanged genotype, rule of the layer) for every searched layer."""
    for cell in network.cells:
        edges = cell.edges if hasattr(cell, "edges") else ()
        for edge, module in zip(network.genotype.cells[cell.kind].edges if edges else (), edges, strict=True):
            for layer in module.modules():
                if isinstance(layer, FeedbackLayer):
                    yield cell.kind, edge.candidate.operation, edge.candidate.rule, layer.rule


def skip_rules(network: GenotypeNetwork) -> list[str]:
    return sorted({rule for _, operation, _, rule in rules_of(network) if operation == "skip_connect"})


@pytest.mark.parametrize("genotype", [GENOTYPE, NB201], ids=["darts", "nb201"])
@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "brsf", "frsf", "dfa"])
def test_a_single_rule_on_every_layer(rule, genotype):
    """Facts: no published baseline passes the error of a skip connection through random signs."""
    network = bf.build_network(genotype.with_rule(rule), channels=4, cells=3)
    before = bf.build_network(genotype, channels=4, cells=3)
    layers = list(rules_of(network))
    assert len(layers) == len(list(rules_of(before))) >= 4
    for (_, operation, recorded, found), (*_, old) in zip(layers, rules_of(before), strict=True):
        keeps = operation == "skip_connect" and rule in ("fa", "dfa")
        assert found == recorded == (old if keeps else rule)
    fixed = [network.stem[0], network.classifier]
    assert [layer.rule for layer in fixed] == ["bp", "bp"]


def test_a_users_rule_of_random_signs_spares_skips():
    class Noise(rules.Rule):
        """Noise."""

        name = "noise"
        stores = "signed"

        def feedback(self, weight, state):
            return state.stored

    rules.register(Noise)
    try:
        network = bf.build_network(GENOTYPE.with_rule("noise"), channels=2, cells=3)
        assert skip_rules(network) == ["brsf", "usf"]
        assert {rule for _, operation, _, rule in rules_of(network) if "conv" in operation} == {"noise"}
    finally:
        rules._registry._items.pop("noise")


@pytest.mark.parametrize("single", ["bp", "fa", "usf"])
def test_comparison_trains_these_networks(single, tmp_path):
    bf.compare_rules(GENOTYPE, bf.TrainConfig(**SMALL), variants=("genotype", single), out=tmp_path)
    as_found, under_one = (bf.load(tmp_path / variant / "seed-0") for variant in ("genotype", single))
    assert skip_rules(as_found) == ["brsf", "usf"]
    assert skip_rules(under_one) == (["brsf", "usf"] if single == "fa" else [single])


def searched(folder: Path, skip_rules: bool, **settings) -> bf.Genotype:
    return bf.search(
        SearchConfig(
            **{**SMALL, "skip_rules": skip_rules, "rules": ("usf", "brsf"), "operations": ("skip_connect",), **settings}
        ),
        out=folder,
    ).genotype


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


TRAIN = ["--epochs", 1, "--channels", 1, "--cells", 3, "--batch-size", 1024]


@pytest.mark.parametrize("carried", [True, False])
def test_training_continues_the_skip_rules_of_its_search(carried, tmp_path, capsys):
    genotype = searched(tmp_path / "search", carried)
    assert {edge.candidate.rule for cell in genotype.cells.values() for edge in cell.edges} <= (
        {"usf", "brsf"} if carried else {"bp"}
    )
    assert command("train", tmp_path / "search", *TRAIN, "--rule", "usf", "--out", tmp_path / "train") == 0
    network = bf.load(tmp_path / "train")
    assert skip_rules(network) == (["usf"] if carried else ["bp"])
    # A run that trains is the source of the next training.
    assert command("train", tmp_path / "train", *TRAIN, "--rule", "brsf", "--out", tmp_path / "again") == 0
    assert skip_rules(bf.load(tmp_path / "again")) == (["brsf"] if carried else ["bp"])
    capsys.readouterr()
    other = ["--set", f"skip_rules={str(not carried).lower()}"]
    assert command("train", tmp_path / "search", *TRAIN, *other, "--out", tmp_path / "no") == 2
    message = capsys.readouterr().err
    assert "skip_rules" in message
    assert str(tmp_path / "search") in message
    assert not (tmp_path / "no").exists()
    assert command("train", tmp_path / "search" / "genotype.json", *TRAIN, "--out", tmp_path / "file") == 0
    assert carried or skip_rules(bf.load(tmp_path / "file")) == ["bp"]


def test_a_run_whose_genotype_names_the_rules_of_skips(tmp_path):
    """The run's setting decides, whatever its genotype says."""
    searched(tmp_path / "search", False)
    (tmp_path / "search" / "genotype.json").write_text(GENOTYPE.to_json())
    assert command("train", tmp_path / "search", *TRAIN, "--out", tmp_path / "train") == 0
    network = bf.load(tmp_path / "train")
    assert skip_rules(network) == ["bp"]
    assert {rule for _, operation, _, rule in rules_of(network) if "conv" in operation} == {"usf", "frsf", "brsf", "fa"}


def test_training_resumes_without_skip_rules(tmp_path):
    config = bf.TrainConfig(**SMALL, skip_rules=False)
    result = bf.train(GENOTYPE, config, out=tmp_path / "run")
    assert skip_rules(result.network) == ["bp"]
    with pytest.warns(bf.BionasWarning, match="complete"):
        again = bf.train(GENOTYPE, resume=tmp_path / "run")
    assert skip_rules(again.network) == ["bp"]


@pytest.mark.parametrize("method", ["random", "evolution", "eg"])
def test_every_method_records_what_it_trained(method, tmp_path):
    genotype = searched(tmp_path / "run", False, method=method, population=4, generations=1)
    assert genotype.rules == ("bp",)


@pytest.mark.parametrize("engine", ["stacked", "modular"])
def test_a_supernet_records_what_it_trained(engine):
    net = bf.build_supernet(channels=1, cells=1, engine=engine, options=SupernetOptions(skip_rules=False))
    for alpha in net.alphas.values():
        alpha.data[:] = -1
        alpha.data[:, 3:6] = 1  # skip connections
    assert net.genotype().rules == ("bp",)
