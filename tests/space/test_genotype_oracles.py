"""Derivation of discrete cells from alphas, against recordings of three published searches."""

from __future__ import annotations

import pytest

from bionas_fast.space import Space, derive_genotype
from bionas_fast.space.formats.darts import parse_published_name
from helpers.oracles.data import cases, load


@pytest.mark.parametrize("case", cases("genotype"))
def test_derivation(case):
    arrays, info = load("genotype", case)
    primitives = info["arguments"]["primitives"]
    space = Space("recorded", tuple(parse_published_name(name) for name in primitives))
    genotype = derive_genotype({kind: arrays[f"alphas_{kind}"] for kind in ("normal", "reduce")}, space)
    for kind, cell in genotype.cells.items():
        found = [(str(edge.candidate), edge.source) for edge in cell.edges]
        assert found == [(str(parse_published_name(name)), source) for name, source in info["genotype"][kind]]
        indices = [[list(space.candidates).index(edge.candidate), edge.source] for edge in cell.edges]
        assert indices == arrays[f"genotype_{kind}"].tolist()
        assert list(cell.concat) == info["genotype"][f"{kind}_concat"]
