"""Text formats of genotypes: reading, writing, editing, rejected input."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bionas_fast import InputError
from bionas_fast.space import Candidate, Cell, Edge, Genotype, Space, derive_genotype, get_space
from helpers.genotypes import random_genotype

TEXT = """{
  "format_version": 1,
  "normal": {"nodes": [["sep_conv_3x3@usf<-0", "skip_connect@brsf<-1"], ["max_pool_3x3<-2", "dil_conv_5x5@fa<-0"]],
             "concat": [2, 3]},
  "reduce": {"nodes": [["avg_pool_3x3<-0", "skip_connect@frsf<-1"]]},
  "fixed": {"stem": "usf"}
}"""


def test_the_papers_space():
    space = get_space("bionas")
    names = [str(c) for c in space.candidates]
    sizes, rules = ("3x3", "5x5"), ("fa", "usf", "brsf", "frsf")
    expected = {"none", "max_pool_3x3", "avg_pool_3x3"}
    expected |= {f"skip_connect@{rule}" for rule in ("usf", "brsf", "frsf")}
    expected |= {f"{kind}_conv_{k}@{rule}" for kind, k, rule in itertools.product(("sep", "dil"), sizes, rules)}
    assert len(names) == 22
    assert set(names) == expected
    assert space.edges == tuple((node, source) for node in range(4) for source in range(node + 2))


def test_reading():
    genotype = Genotype.from_json(TEXT)
    assert genotype.normal.nodes[0] == (
        Edge(Candidate("sep_conv_3x3", "usf"), 0),
        Edge(Candidate("skip_connect", "brsf"), 1),
    )
    assert genotype.reduce.concat == (2,)
    assert dict(genotype.fixed) == {"stem": "usf", "preprocess": "bp", "head": "bp"}
    assert genotype.rules == ("usf", "brsf", "fa", "frsf")


@pytest.mark.parametrize("seed", range(5))
def test_round_trip(seed):
    genotype = random_genotype(seed)
    text = genotype.to_json()
    assert Genotype.from_json(text) == genotype
    assert json.loads(text)["normal"]["nodes"][0][0] == str(genotype.normal.nodes[0][0])
    assert max(map(len, text.splitlines())) < 100  # one node per line, for readability


def test_hash_is_canonical():
    genotype = random_genotype(0)
    swapped = Cell((genotype.normal.nodes[0][::-1], *genotype.normal.nodes[1:]), genotype.normal.concat)
    assert Genotype(swapped, genotype.reduce).hash == genotype.hash
    assert Genotype(genotype.reduce, genotype.normal).hash != genotype.hash
    assert Genotype(genotype.normal, genotype.reduce, {"head": "usf"}).hash != genotype.hash
    assert len({random_genotype(seed).hash for seed in range(50)}) == 50


def test_with_rule():
    assert Genotype.from_json(TEXT).with_rule("usf").rules == ("usf",)
    genotype = Genotype.from_json(TEXT).with_rule("fa")
    assert genotype.rules == ("fa", "brsf", "frsf")  # those of the skip connections
    assert str(genotype.normal.nodes[1][0]) == "max_pool_3x3<-2"
    assert genotype.fixed["stem"] == "usf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sep_conv_3x3@usf<-0", "sep_conv_3x4@usf<-0"), r"normal\.nodes\[0\]\[0\].*'sep_conv_3x4'.*'sep_conv_3x3'"),
        (("skip_connect@brsf<-1", "skip_connect@brf<-1"), r"normal\.nodes\[0\]\[1\].*rule 'brf'.*'brsf'"),
        (("skip_connect@frsf<-1", "skip_connect<-1"), r"reduce\.nodes\[0\]\[1\].*needs a rule"),
        (("avg_pool_3x3<-0", "avg_pool_3x3@bp<-0"), r"reduce\.nodes\[0\]\[0\].*takes no rule"),
        (("avg_pool_3x3<-0", "avg_pool_3x3"), r"reduce\.nodes\[0\]\[0\].*no source"),
        (("avg_pool_3x3<-0", "avg_pool_3x3<-x"), r"reduce\.nodes\[0\]\[0\].*'x'"),
        (("dil_conv_5x5@fa<-0", "dil_conv_5x5@fa<-3"), r"normal\.nodes\[1\]\[1\].*source 3.*0 to 2"),
        (("avg_pool_3x3<-0", "none<-0"), r"reduce\.nodes\[0\]\[0\].*'none'"),
        (("[2, 3]", "[2, 4]"), r"normal\.concat.*4"),
        (("[2, 3]", "[2, 2]"), r"normal\.concat.*twice"),
        (("[2, 3]", "[]"), r"normal\.concat"),
        (("[2, 3]", '["2"]'), r"normal\.concat\[0\].*number"),
        (('"concat"', '"concta"'), r"normal.*'concta'.*'concat'"),
        (('"stem": "usf"', '"stm": "usf"'), r"fixed.*'stm'.*'stem'"),
        (('"stem": "usf"', '"stem": "us"'), r"fixed\.stem.*'us'.*'usf'"),
        (('"stem": "usf"', '"stem": 3'), r"fixed\.stem.*string"),
        (('"format_version": 1', '"format_version": 2'), "format_version.*2"),
        (('"normal"', '"reduce"'), "'reduce' occurs twice"),
        (('"nodes": [["avg', '"nodes": [[], ["avg'), r"reduce\.nodes\[0\].*at least one"),
        (("{", "", 1), "line 2"),
        (("]],", "]]", 1), r"line 4, column \d+"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_errors_point_at_the_place(change, message):
    text = TEXT.replace(*change)
    assert text != TEXT
    with pytest.raises(InputError, match=message):
        Genotype.from_json(text)


DARTS_TEXT = (
    "Genotype(normal=[('sep_conv_3x3_u', 0), ('sep_conv_5x5_br', 1), ('skip_connect_b', 2), ('skip_connect_f', 0)], "
    "normal_concat=range(2, 4), reduce=[('dil_conv_3x3_fr', 0), ('max_pool_3x3', 1), ('dil_conv_5x5_fa', 2), "
    "('sep_conv_3x3', 1)], reduce_concat=[2, 3])"
)


def test_published_text():
    genotype = Genotype.from_darts(DARTS_TEXT)
    assert [[str(e) for e in node] for node in genotype.normal.nodes] == [
        ["sep_conv_3x3@usf<-0", "sep_conv_5x5@brsf<-1"],
        ["skip_connect@brsf<-2", "skip_connect@frsf<-0"],
    ]
    assert [str(e) for e in genotype.reduce.edges] == [
        "dil_conv_3x3@frsf<-0",
        "max_pool_3x3<-1",
        "dil_conv_5x5@fa<-2",
        "sep_conv_3x3@bp<-1",
    ]
    assert genotype.normal.concat == genotype.reduce.concat == (2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DARTS_TEXT.replace("'sep_conv_3x3_u', 0", "__import__('os').getpid(), 0"), "normal"),
        (DARTS_TEXT.replace("range(2, 4)", "range(2, 10**9)"), "normal_concat"),
        (DARTS_TEXT.replace("Genotype(", "print("), "Genotype"),
        (DARTS_TEXT.replace("sep_conv_3x3_u", "sep_conv_9x9_u"), r"normal\[0\].*sep_conv_9x9"),
        (DARTS_TEXT.replace("('skip_connect_b', 2)", "('skip_connect_b', 7)"), "source 7"),
        (DARTS_TEXT[:-1], "not the text"),
        ("Genotype()", "'normal' is missing"),
    ],
    ids=["call", "huge_range", "other_call", "operation", "source", "cut_off", "empty"],
)
def test_published_text_is_never_evaluated(text, message):
    with pytest.raises(InputError, match=message):
        Genotype.from_darts(text)


def test_load_names_the_file(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(TEXT)
    bad.write_text(TEXT.replace("@usf", "@usff"))
    (tmp_path / "old.txt").write_text(DARTS_TEXT)
    assert Genotype.load(good) == Genotype.from_json(TEXT)
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert Genotype.load(tmp_path / "marked.json") == Genotype.load(good)
    assert Genotype.load(tmp_path / "old.txt") == Genotype.from_darts(DARTS_TEXT)
    with pytest.raises(InputError, match=r"bad\.json: normal\.nodes"):
        Genotype.load(bad)
    with pytest.raises(InputError, match=r"none\.json"):
        Genotype.load(tmp_path / "none.json")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.integers(0, 12), st.text(max_size=6))
def test_damaged_text_is_read_or_refused(start, length, insert):
    text = TEXT[:start] + insert + TEXT[start + length :]
    try:
        genotype = Genotype.from_json(text)
    except InputError:
        return
    assert Genotype.from_json(genotype.to_json()) == genotype


def test_deep_nesting_is_refused():
    with pytest.raises(InputError):
        Genotype.from_json("[" * 100_000)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_derivation_against_its_definition(seed):
    """Select two edges per node by their largest weight, each with its best candidate, by brute force in float64."""
    space = get_space("bionas")
    generator = torch.Generator().manual_seed(seed)
    alphas = {kind: torch.randn(14, 22, generator=generator) for kind in ("normal", "reduce")}
    genotype = derive_genotype(alphas, space)
    for kind, cell in genotype.cells.items():
        weights = alphas[kind].double().exp()
        weights /= weights.sum(dim=1, keepdim=True)
        for node, edges in enumerate(cell.nodes):
            incoming = {
                source: max((weights[row, k].item(), str(c)) for k, c in enumerate(space.candidates) if k)
                for row, (n, source) in enumerate(space.edges)
                if n == node
            }
            strongest = sorted(incoming, key=lambda source: -incoming[source][0])[:2]
            assert [(e.source, str(e.candidate)) for e in edges] == [(s, incoming[s][1]) for s in strongest]


def test_derivation_refuses_what_does_not_fit():
    space = get_space("bionas")
    with pytest.raises(InputError, match=r"\[14, 8\].*\[14, 22\]"):
        derive_genotype(dict.fromkeys(("normal", "reduce"), torch.zeros(14, 8)), space)
    with pytest.raises(InputError, match="not finite"):
        derive_genotype(dict.fromkeys(("normal", "reduce"), torch.full((14, 22), float("nan"))), space)


def test_what_a_space_does_not_have_joins_it():
    darts = get_space("darts-bp")
    names = ["max_pool_3x3", "skip_connect", "dil_conv_3x3", "hebbian_conv_3x3"]
    assert [str(c) for c in darts.restricted(["bp", "usf"], names).candidates] == [
        "none",
        "max_pool_3x3",
        "skip_connect@bp",
        "dil_conv_3x3@bp",
        "skip_connect@usf",
        "dil_conv_3x3@usf",
        "hebbian_conv_3x3",
    ]
    assert {c.rule for c in darts.restricted(["dfa"]).candidates} == {None, "dfa"}
    assert {c.operation for c in darts.restricted(["dfa"]).candidates} == {c.operation for c in darts.candidates}


def test_restriction():
    space = get_space("bionas")
    small = space.restricted(["usf"], ["sep_conv_3x3", "skip_connect"])
    assert [str(c) for c in small.candidates] == ["none", "skip_connect@usf", "sep_conv_3x3@usf"]
    assert {c.rule for c in space.restricted(["usf", "fa"]).candidates} == {None, "usf", "fa"}
    assert isinstance(space.restricted(), Space)
    assert space.restricted() == space
    assert space.restricted(["usf", "usf"], ["skip_connect", "dil_conv_3x3"]).candidates == tuple(
        Candidate.parse(text) for text in ("none", "skip_connect@usf", "dil_conv_3x3@usf")
    )
    with pytest.raises(InputError, match=r"'ufs'.*'usf'"):
        space.restricted(["ufs"])
    with pytest.raises(InputError, match="nothing to search"):
        space.restricted(["fa"], ["skip_connect"])
