"""How far a search has decided, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bionas_fast.space import Candidate, Decision, Genotype, derive_genotype, get_space


@pytest.fixture
def searched():
    """A space of four candidates, and alphas of which node 0 has decided in the normal cell only."""
    space = get_space("bionas").restricted(("usf", "fa"), ("none", "sep_conv_3x3", "max_pool_3x3"))
    alphas = {kind: np.zeros((len(space.edges), len(space.candidates)), np.float32) for kind in space.kinds}
    names = [str(candidate) for candidate in space.candidates]
    first = alphas["normal"][0]
    first[names.index("sep_conv_3x3@fa")] = np.log(3)
    first[names.index("max_pool_3x3")] = np.log(2)
    first[names.index("none")] = 5  # no genotype has it
    genotype = derive_genotype({kind: torch.from_numpy(alpha) for kind, alpha in alphas.items()}, space)
    return space, alphas, genotype


def test_leads(searched):
    space, alphas, genotype = searched
    found = Decision.of(genotype, ["a", "b", "b"], space, alphas)
    assert len(found.leads) == sum(len(cell.edges) for cell in genotype.cells.values())
    lead = next(lead for lead in found.leads if (lead.kind, lead.node, lead.source) == ("normal", 0, 0))
    assert (lead.candidate, lead.second) == (Candidate("sep_conv_3x3", "fa"), Candidate("max_pool_3x3"))
    assert lead.ratio == pytest.approx(1.5)
    assert lead.weight == pytest.approx(3 / (3 + 2 + 1 + np.exp(5)))
    assert {lead.ratio for lead in found.leads if lead.kind == "reduce"} == {1.0}
    assert (found.decided, found.undecided) == (1, True)
    assert str(found) == "1 of 16 edges lead by 10 % or more; genotype unchanged for 2 of 3 epochs"


def test_without_alphas(searched):
    found = Decision.of(searched[2], ["a", "b", "a"])
    assert (found.leads, found.undecided, found.stable, found.epochs) == ((), False, 1, 3)
    assert str(found) == "genotype unchanged for 1 of 3 epochs"
    assert Decision.of(searched[2], []).stable == 0


def test_skip_connections_without_a_rule():
    space = get_space("bionas").restricted(("usf", "fa"), ("skip_connect", "sep_conv_3x3"))
    alphas = {kind: np.zeros((len(space.edges), len(space.candidates)), np.float32) for kind in space.kinds}
    position = [str(candidate) for candidate in space.candidates].index("skip_connect@usf")
    for alpha in alphas.values():
        alpha[:, position] = 1
    derived = derive_genotype({kind: torch.from_numpy(alpha) for kind, alpha in alphas.items()}, space)
    found = Decision.of(derived.without_skip_rules(), ["a"], space, alphas)
    assert {str(lead.candidate) for lead in found.leads} == {"skip_connect@usf"}
    assert {round(lead.ratio, 6) for lead in found.leads} == {round(float(np.e), 6)}
    assert not found.undecided
    assert isinstance(derived, Genotype)
