"""The result of a search: read from its folder, shown in a terminal and in a notebook."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.searching import SearchResult
from helpers import reports
from helpers.genotypes import GENOTYPE
from helpers.pages import Page


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    settings = {"channels": 1, "cells": 1, "epochs": 2, "batch_size": 256, "operations": ("skip_connect",)}
    with reports.drawn():
        return bf.search(
            bf.SearchConfig(**settings, alpha_learning_rate=3e-4), out=tmp_path_factory.mktemp("result") / "run"
        )


def test_is_read_from_its_folder(found):
    assert SearchResult.load(found.run_dir) == found
    assert SearchResult.load(str(found.run_dir)).genotype == bf.Genotype.load(found.run_dir / "genotype.json")


def test_alphas_are_those_of_the_file(found):
    with np.load(found.run_dir / "alphas.npz") as stored:
        assert set(found.alphas) == {"normal", "reduce"}
        for kind, alpha in found.alphas.items():
            assert alpha.shape[0] == 3
            assert np.array_equal(alpha, stored[kind])


@pytest.mark.parametrize(("by", "panels"), [("rule", 3), ("operation", 1)])
def test_plot(found, by, panels):
    assert len(found.plot(by).axes) == panels


def test_fits_a_line(found):
    assert repr(found.genotype) in repr(found)
    assert str(found.run_dir) in repr(found)
    edges = sum(len(cell.edges) for cell in GENOTYPE.cells.values())
    assert repr(GENOTYPE).startswith(f"Genotype({GENOTYPE.hash}: {edges} edges, ")
    assert len(repr(GENOTYPE)) < 120


def test_a_notebook_draws_the_cells(found):
    for shown in (found._repr_html_(), found.genotype._repr_html_()):
        drawn = ET.fromstring(shown[shown.index("<svg") :])
        assert drawn.tag.endswith("svg")
        assert found.genotype.hash in shown


def test_other_runs(tmp_path):
    result = bf.train_resnet(bf.ResNetConfig(epochs=1, batch_size=700), out=tmp_path / "trained")
    assert repr(result).startswith("TrainResult(SmallResNet of 269,434 parameters, test accuracy ")
    with pytest.raises(InputError, match="trained: a resnet run, not a search"):
        SearchResult.load(tmp_path / "trained")
    with pytest.raises(InputError, match="no run folder"):
        SearchResult.load(tmp_path / "none")


def test_a_genotype_is_saved(tmp_path):
    GENOTYPE.save(tmp_path / "cell.json")
    assert json.loads((tmp_path / "cell.json").read_text()) == json.loads(GENOTYPE.to_json())
    assert bf.Genotype.load(tmp_path / "cell.json") == GENOTYPE
    with pytest.raises(InputError, match="cannot write genotype"):
        GENOTYPE.save(tmp_path / "none" / "cell.json")


def test_how_far_it_has_decided(found):
    with np.load(found.run_dir / "alphas.npz") as stored:
        names = [str(name) for name in stored["candidates"]]
        powers = {kind: np.exp(stored[kind][-1].astype(np.float64)) for kind in found.genotype.cells}
    space = bf.space.get_space("bionas").restricted((), ("skip_connect",))
    for lead in found.decision.leads:
        row = powers[lead.kind][space.edges.index((lead.node, lead.source))]
        weights = dict(zip(names, row / row.sum(), strict=True))
        assert lead.weight == pytest.approx(max(weights.values()))
        assert weights[str(lead.candidate)] == max(weights.values())
        assert lead.second_weight == pytest.approx(sorted(weights.values())[-2])
    assert len(found.decision.leads) == sum(len(cell.edges) for cell in found.genotype.cells.values())
    page = (found.run_dir / "report.html").read_text()
    assert "The lead on every edge" in page
    words = Page(page).words
    for name, value in (("edges that lead by 10 % or more", "0 of 16"), ("last epochs with this genotype", "1 of 2")):
        assert words[words.index(name) - 1] == value
    network = bf.build_network(found.genotype, channels=1, cells=1, in_channels=1)
    weights = sum(weight.numel() for weight in network.parameters())
    assert words[words.index("parameters of the genotype network") - 1] == f"{weights:,}"
    assert any(message.startswith("undecided: ") for message in found.messages)
