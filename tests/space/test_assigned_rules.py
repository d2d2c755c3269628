"""Other rules on the same architecture: one rule on every layer, and rules reassigned at random."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import nn

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.models import NetworkOptions
from bionas_fast.space import Genotype, published
from helpers.genotypes import GENOTYPE, random_genotype

NB201 = Genotype.from_nb201("|nor_conv_3x3@usf~0|+|none~0|skip_connect@brsf~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|")


def weighted(network: nn.Module) -> dict[str, nn.Module]:
    """Return every layer with a weight matrix or kernel, by name; normalisations have vectors."""
    return {name: m for name, m in network.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) > 1}


@pytest.mark.parametrize("rule", ["bp", "usf", "brsf", "frsf"])
@pytest.mark.parametrize(
    ("genotype", "options"),
    [
        (GENOTYPE, {"auxiliary": True}),
        (GENOTYPE, {"options": NetworkOptions("imagenet")}),
        (NB201, {}),
        (random_genotype(1), {}),
    ],
    ids=["auxiliary", "imagenet", "nb201", "random"],
)
def test_a_rule_everywhere_is_that_of_every_layer(rule, genotype, options):
    found = genotype.with_rule(rule, everywhere=True)
    assert found.fixed == dict.fromkeys(("stem", "preprocess", "head"), rule)
    assert Genotype.from_json(found.to_json()) == found
    layers = weighted(bf.build_network(found, channels=4, cells=3, **options))
    assert any("classifier" in name for name in layers) and any("stem" in name for name in layers)
    assert {name: getattr(layer, "rule", None) for name, layer in layers.items()} == dict.fromkeys(layers, rule)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_random_signs_everywhere_spare_skip_connections(rule):
    """Here and on the searched edges alone, a skip connection keeps its rule."""
    found = GENOTYPE.with_rule(rule, everywhere=True)
    assert found == Genotype(**GENOTYPE.with_rule(rule).cells, fixed=found.fixed)
    network = bf.build_network(found, channels=4, cells=3, auxiliary=True)
    rules = Counter(layer.rule for layer in weighted(network).values())
    assert set(rules) == {rule, "usf", "brsf"}
    logits = network(torch.randn(2, 3, 32, 32))
    sum(out.square().sum() for out in logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_searched_edges_only_by_default():
    fixed = {"stem": "frsf", "preprocess": "bp", "head": "usf"}
    assert Genotype(**GENOTYPE.cells, fixed=fixed).with_rule("fa").fixed == fixed
    with pytest.raises(InputError, match="'usf'"):
        GENOTYPE.with_rule("ufs", everywhere=True)


def edges(genotype: Genotype) -> list[tuple[str, int, str]]:
    return [(e.candidate.operation, e.source, e.candidate.rule) for c in genotype.cells.values() for e in c.edges]


GENOTYPES = {"paper": published("biodarts2").genotype, "small": GENOTYPE, "random": random_genotype(3)}


@pytest.mark.parametrize("name", GENOTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2, 10**9])
def test_shuffling_moves_rules_and_nothing_else(name, seed):
    genotype = GENOTYPES[name]
    shuffled = genotype.with_shuffled_rules(seed)
    assert shuffled == genotype.with_shuffled_rules(seed) != genotype
    before, after = edges(genotype), edges(shuffled)
    assert [edge[:2] for edge in before] == [edge[:2] for edge in after]
    assert [rule is None for *_, rule in before] == [rule is None for *_, rule in after]
    for skips in (True, False):
        kept, moved = (
            Counter(rule for operation, _, rule in own if (operation == "skip_connect") is skips)
            for own in (before, after)
        )
        assert kept == moved
    assert shuffled.fixed == genotype.fixed
    assert Genotype.from_json(shuffled.to_json()) == shuffled


def test_seeds_mean_the_same_on_every_machine():
    """By hand from the first numbers of seed 0, 0.84 0.76 for the skips, then 0.42 0.26 0.51 0.40: sorted by them."""
    skips, others = ["usf", "brsf"], ["frsf", "fa", "usf", "brsf"]
    assert [(op, rule) for op, _, rule in edges(GENOTYPE.with_shuffled_rules(0))] == [
        ("sep_conv_3x3", others[0]), ("skip_connect", skips[0]), ("dil_conv_3x3", others[1]), ("max_pool_3x3", None),
        ("sep_conv_3x3", others[2]), ("skip_connect", skips[1]), ("avg_pool_3x3", None), ("dil_conv_3x3", others[3]),
    ]  # fmt: skip


def test_all_other_arrangements_are_equally_likely():
    cell = '"nodes": [["sep_conv_3x3@usf<-0", "sep_conv_3x3@fa<-1"], ["dil_conv_3x3@fa<-0", "skip_connect@usf<-1"]]'
    genotype = Genotype.from_json(f'{{"format_version": 1, "normal": {{{cell}}}, "reduce": {{{cell}}}}}')
    found = Counter(tuple(rule for _, _, rule in edges(genotype.with_shuffled_rules(seed))) for seed in range(1400))

    def arranged(usf: tuple[int, ...]) -> tuple[str, ...]:
        rules = ["usf" if k in usf else "fa" for k in range(6)]
        return (*rules[:3], "usf", *rules[3:], "usf")  # the two skip connections have one rule

    expected = {arranged(usf) for usf in itertools.combinations(range(6), 2)} - {arranged((0, 3))}
    assert set(found) == expected and len(expected) == 14
    chi_squared = sum((count - 100) ** 2 / 100 for count in found.values())
    assert chi_squared < 34.5  # the 99.9 % quantile of 13 degrees of freedom


@pytest.mark.parametrize("text", ["usf usf", "None None", "fa skip:usf"])
def test_nothing_to_shuffle(text):
    words = {"usf": "sep_conv_3x3@usf<-{}", "None": "max_pool_3x3<-{}", "fa": "sep_conv_3x3@fa<-{}"}
    words["skip:usf"] = "skip_connect@usf<-{}"
    node = ", ".join(f'"{words[word].format(k)}"' for k, word in enumerate(text.split()))
    cell = f'{{"nodes": [[{node}]]}}'
    genotype = Genotype.from_json(f'{{"format_version": 1, "normal": {cell}, "reduce": {cell}}}')
    with pytest.raises(InputError, match="no other arrangement"):
        genotype.with_shuffled_rules(0)
