"""Common edges of genotypes, counted by hand."""

from __future__ import annotations

import pytest

from bionas_fast import InputError
from bionas_fast.space import Agreement, Genotype


def genotype(*edges: str) -> Genotype:
    """Two nodes with two edges each; the reduction cell is always the same."""
    one, two, three, four = edges
    same = '"reduce": {"nodes": [["max_pool_3x3<-0", "max_pool_3x3<-1"], ["max_pool_3x3<-0", "max_pool_3x3<-2"]]}'
    nodes = f'[["{one}", "{two}"], ["{three}", "{four}"]]'
    return Genotype.from_json(f'{{"format_version": 1, "normal": {{"nodes": {nodes}}}, {same}}}')


FIRST = genotype("sep_conv_3x3@usf<-0", "skip_connect@brsf<-1", "dil_conv_3x3@usf<-0", "sep_conv_5x5@fa<-2")


@pytest.mark.parametrize(
    ("second", "counts"),
    [
        (FIRST, (8, 8, 8)),
        # The order of a node's edges does not matter.
        (
            genotype("skip_connect@brsf<-1", "sep_conv_3x3@usf<-0", "sep_conv_5x5@fa<-2", "dil_conv_3x3@usf<-0"),
            (8, 8, 8),
        ),
        # Another rule, another operation, another source.
        (genotype("sep_conv_3x3@brsf<-0", "max_pool_3x3<-1", "dil_conv_3x3@usf<-1", "sep_conv_5x5@fa<-2"), (7, 6, 5)),
    ],
    ids=["same", "order", "different"],
)
def test_common_edges(second, counts):
    agreement = Agreement.of([FIRST, second])
    assert (agreement.states, agreement.operations, agreement.candidates) == counts
    assert agreement.edges == 8
    assert Agreement.of([FIRST, FIRST, second]) == agreement
    assert str(agreement).startswith(f"{counts[0]} of 8 edges, {counts[1]} with the same operation")


def test_edges_common_to_pairs_only_are_not_common_to_all():
    others = [
        genotype("sep_conv_3x3@usf<-0", "max_pool_3x3<-0", "max_pool_3x3<-0", "max_pool_3x3<-1"),
        genotype("max_pool_3x3<-0", "skip_connect@brsf<-1", "max_pool_3x3<-0", "max_pool_3x3<-1"),
    ]
    assert Agreement.of([FIRST, *others]).candidates == 4
    with pytest.raises(InputError, match="at least one"):
        Agreement.of([])
