"""Genotypes in the text of published code, logs and Python files."""

from __future__ import annotations

import re
import time

import pytest

from bionas_fast import InputError
from bionas_fast.space import Genotype

#: DARTS_V2 as published (Liu et al. 2019), and its edges as written here.
NORMAL = "[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
NORMAL += "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)]"
REDUCE = "[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
REDUCE += "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)]"
CALL = f"Genotype(normal={NORMAL}, normal_concat=range(2, 6), reduce={REDUCE}, reduce_concat=range(2, 6))"
COLUMN = CALL.index("range") + 1
EDGES = {
    "normal": "sep_conv_3x3@bp<-0 sep_conv_3x3@bp<-1 sep_conv_3x3@bp<-0 sep_conv_3x3@bp<-1 sep_conv_3x3@bp<-1 "
    "skip_connect@bp<-0 skip_connect@bp<-0 dil_conv_3x3@bp<-2",
    "reduce": "max_pool_3x3<-0 max_pool_3x3<-1 skip_connect@bp<-2 max_pool_3x3<-1 max_pool_3x3<-0 "
    "skip_connect@bp<-2 skip_connect@bp<-2 max_pool_3x3<-1",
}
STRING = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
NODES = [["nor_conv_3x3@bp<-0"], ["skip_connect@bp<-1"], ["avg_pool_3x3<-0", "nor_conv_1x1@bp<-1"]]
FORMS = r"JSON .*Genotype\(normal=.*NAS-Bench-201 string"


def pretty(call: str) -> str:
    return call.replace("), (", "),\n        (").replace("=", "=\n    ") + "\n"


def each(pattern: str, replacement: str) -> str:
    return re.sub(pattern, replacement, CALL)


DARTS_FORMS = {
    "alone": CALL,
    "named": f"DARTS_V2 = {CALL}\n",
    "file": f"from collections import namedtuple\n\nGenotype = namedtuple('Genotype', 'normal normal_concat')\n\n"
    f"PRIMITIVES = ['none']\n\nDARTS_V2 = {pretty(CALL)}\nDARTS = DARTS_V2\n",
    "log": f"03/14 12:30:11 PM genotype = {CALL}\n03/14 12:30:12 PM valid_acc 97.240000\n",
    "log with words after": f"2019-05-02 10:00:00,123 INFO [search] epoch 49: {CALL} (acc. 97.2 %)",
    "repeated in a log": f"epoch 48 {CALL}\nepoch 49 {CALL}\n",
    "lines": pretty(CALL),
    "qualified": f"genotypes.{CALL}",
    "trailing commas": CALL.replace(")]", "),]").replace("6))", "6),)"),
    "double quotes": CALL.replace("'", '"'),
    "in quotes": f'arch = "{CALL}"',
    "in quotes, escaped": "{'arch': '" + CALL.replace("'", "\\'") + "'}",
    "in JSON": '{"arch": "' + CALL.replace("'", '\\"') + '"}',
    "numpy integers": each(r", (\d)\)", r", np.int64(\1))"),
    "numpy integers, long": each(r", (\d)\)", r", numpy.int32(\1))"),
    "numpy strings": each(r"('\w+'), ", r"np.str_(\1), "),
    "arrays": CALL.replace("range(2, 6)", "array([2, 3, 4, 5])"),
    "arrays with a dtype": CALL.replace("range(2, 6)", "np.array([2, 3, 4, 5], dtype=np.int64)"),
    "tensors": CALL.replace("range(2, 6)", "tensor([2, 3, 4, 5])"),
    "lists": CALL.replace("range(2, 6)", "[2, 3, 4, 5]"),
    "tuples": CALL.replace("range(2, 6)", "(2, 3, 4, 5)").replace("[(", "((").replace(")]", "))"),
    "list of range": CALL.replace("range(2, 6)", "list(range(2, 6))"),
    "range with a step": CALL.replace("range(2, 6)", "range(2, 6, 1)"),
    "lists as pairs": each(r"\(('\w+', \d)\)", r"[\1]"),
    "by position": each(r"\w+=", ""),
    "without concat": each(r", \w+_concat=range\(2, 6\)", ""),
    "comments": pretty(CALL).replace("),\n", "),  # it's an edge (really\n"),
    "carriage returns": pretty(CALL).replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + CALL,
    "blank lines": "\n\n   " + CALL,
}


@pytest.mark.parametrize("form", DARTS_FORMS)
def test_forms_of_darts(form, tmp_path):
    text = DARTS_FORMS[form]
    (tmp_path / "genotype.txt").write_bytes(text.encode())
    for genotype in (Genotype.from_darts(text), Genotype.from_text(text), Genotype.load(tmp_path / "genotype.txt")):
        assert {kind: " ".join(map(str, cell.edges)) for kind, cell in genotype.cells.items()} == EDGES
        assert genotype.normal.concat == genotype.reduce.concat == (2, 3, 4, 5)


NB201_FORMS = {
    "alone": STRING,
    "quotes": f"'{STRING}'",
    "double quotes": f'arch = "{STRING}"\n',
    "sentence": f"the best architecture is {STRING}.",
    "log": f"[2020-01-01] last-geno is Structure(4 nodes with {STRING})\n[2020-01-01] accuracy 94.37\n",
    "constructor": "CODE = Structure([(('nor_conv_3x3', 0),), (('none', 0), ('skip_connect', 1)),\n"
    "  (('avg_pool_3x3', 0), ('nor_conv_1x1', np.int64(1)), ('none', 2))])",
    "lists": 'Structure([[["nor_conv_3x3", 0]], [["none", 0], ["skip_connect", 1]], '
    '[["avg_pool_3x3", 0], ["nor_conv_1x1", 1], ["none", 2]]])',
    "blanks": STRING.replace("+", " + "),
    "carriage return": STRING + "\r\n",
    "byte order mark": "\ufeff" + STRING,
    "repeated": f"{STRING}\n{STRING}\n",
    "in JSON": f'{{"arch": "{STRING}"}}',
}


@pytest.mark.parametrize("form", NB201_FORMS)
def test_forms_of_nb201(form, tmp_path):
    text = NB201_FORMS[form]
    (tmp_path / "genotype.txt").write_bytes(text.encode())
    for genotype in (Genotype.from_text(text), Genotype.load(tmp_path / "genotype.txt")):
        assert [[str(edge) for edge in edges] for edges in genotype.cells["cell"].nodes] == NODES


def test_rules_in_published_names():
    """Suffixes of the paper's code, names of this package, and operations without a rule."""
    pairs = "[('sep_conv_3x3_u', 0), ('dil_conv_5x5@frsf', 1), ('hebbian_conv_3x3', 0), ('skip_connect_b', 2)]"
    genotype = Genotype.from_text(f"BIODARTS = Genotype({pairs}, range(2, 4), {pairs}, range(2, 4))")
    assert " ".join(map(str, genotype.normal.edges)) == (
        "sep_conv_3x3@usf<-0 dil_conv_5x5@frsf<-1 hebbian_conv_3x3<-0 skip_connect@brsf<-2"
    )


def test_a_file_of_the_other_encoding_of_windows(tmp_path):
    (tmp_path / "out.txt").write_text(CALL + "\n", encoding="utf-16")
    assert Genotype.load(tmp_path / "out.txt") == Genotype.from_darts(CALL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "hello",
        "genotype: sep_conv_3x3",
        "[1, 2]",
        "null",
        "Genotype",
        "<html>",
        "normal: [[a]]",
        "\x00\x01",
    ],
)
def test_anything_else_names_the_forms_and_the_place(text, tmp_path):
    (tmp_path / "it.txt").write_text(text)
    with pytest.raises(InputError, match=rf"it\.txt: genotype: line \d+, column \d+: expected {FORMS}"):
        Genotype.load(tmp_path / "it.txt")
    with pytest.raises(InputError, match=FORMS):
        Genotype.from_darts(text)
    with pytest.raises(InputError, match=FORMS):
        Genotype.from_json(text) if not text.startswith(("[", "null")) else Genotype.from_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a\nb = {CALL}".replace("sep_conv_3x3', 0", "sep_conv_3x4', 0", 1), r"line 2, column 22: normal\[0\].*3x4"),
        (pretty(CALL).replace("('skip_connect', 0)", "('skip_connect', 9)"), r"line \d+, column 5: normal: nodes\[2\]"),
        (
            f"x {CALL}".replace("range(2, 6)", "__import__('os').getpid()"),
            f"line 1, column {COLUMN + 2}: normal_concat.*__import",
        ),
        (
            CALL.replace("range(2, 6)", "range(2, 10**9)"),
            f"column {COLUMN + 9}: normal_concat: expected plain",
        ),
        (CALL.replace("range(2, 6)", "3"), f"column {COLUMN}: normal_concat: expected states"),
        (CALL.replace("normal_concat", "normal_conact"), "unknown entry 'normal_conact'.*'normal_concat'"),
        (CALL.replace("normal_concat=", "**"), "unknown entry"),
        (CALL.replace("('sep_conv_3x3', 0)", "lambda: 0", 1), "plain values, got 'lambda: 0'"),
        (CALL.replace("('sep_conv_3x3', 0)", "('sep_conv_3x3', True)", 1), r"normal\[0\]: expected \('operation'"),
        (CALL.replace("('sep_conv_3x3', 0)", "('sep_conv_3x3', -1)", 1), r"plain values, got '-1'"),
        (CALL.replace("('sep_conv_3x3', 0), ", "", 1), "two edges per node"),
        (f"log\n  {CALL[:-1]}", r"line 2, column 3: Genotype\( is not closed"),
        (CALL.replace("normal=", "normal=;"), "line 1, column 17: not the text"),
        (CALL.replace("normal=", "normal=="), "line 1, column 10: normal: expected plain values"),
        (f"|bad{STRING}", FORMS),
        (f"|bad~x{STRING}", FORMS),
        (f"A = {CALL}\nB = {CALL.replace('3x3', '5x5')}\n", r"expected one, got 2: A \(line 1\), B \(line 2\)"),
        (f"{STRING}\n{STRING.replace('skip_connect', 'none')}", "2 different strings, in lines 1, 2"),
        (f"Structure(4 nodes with {STRING.replace('3x3', '3x4')})", "line 1, column 24: node 1, edge 0.*3x4"),
        ("\n Structure([(('none', 0),), (('none', 0),)])", "line 2, column 2: node 2: expected one edge from each"),
        ("Structure(4)", r"node 1, edge 0: expected \('operation', source\), got 4"),
        ("Structure()", "line 1, column 1: expected Structure"),
        (f"found {STRING.replace('~0|', '~x|', 1)}", FORMS),
        (f"found: {STRING[:-1]}", "line 1, column 8: node 3: expected edges between bars"),
        ("{'normal': []}", f"line 1, column 2.*{FORMS}"),
    ],
    ids=lambda value: value[:20] if value.isprintable() else None,
)
def test_errors_name_line_and_column(text, message):
    with pytest.raises(InputError, match=message):
        Genotype.from_text(text)


HOSTILE = {
    "10 MB": "Genotype(normal=[" + "('sep_conv_3x3', 0), " * 500_000 + "])",
    "10 MB of JSON": '{"normal": [' + "1, " * 3_400_000 + "1]}",
    "10 MB of bars": "|none~0" * 1_500_000,
    "1 MB": "Genotype(normal=[" + "('sep_conv_3x3', 0), " * 49_000 + "])",
    "deep": "Genotype(normal=" + "[" * 100_000 + "]" * 100_000 + ")",
    "deep calls": "Genotype(" * 100_000,
    "deep JSON": '{"normal": ' + "[" * 500_000,
    "signs": "Genotype(normal=" + "-" * 60_000 + "1, reduce=[])",
    "attributes": "Genotype(normal=" + "a." * 30_000 + "a)",
    "sums": "Genotype(normal=" + "1+" * 30_000 + "1)",
    "digits": "Genotype(normal=" + "9" * 60_000 + ")",
    "powers": "Genotype(normal=9**9**9**9**9, reduce=[])",
    "many": "".join(f"Genotype({i})\n" for i in range(60_000)),
    "names": "a." * 200_000 + "Genotype(1)",
    "bars": "|" * 1_000_000,
    "bars and blanks": "| " * 500_000,
    "strings": "Genotype('" * 100_000,
    "escapes": "Genotype('" + "\\" * 1_000_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_refused_soon(case, tmp_path):
    (tmp_path / "it").write_text(HOSTILE[case])
    begin = time.process_time()
    for read in (Genotype.from_text, Genotype.from_darts, Genotype.from_json, Genotype.from_nb201):
        with pytest.raises(InputError) as error:
            read(HOSTILE[case])
        assert len(str(error.value)) < 600
    with pytest.raises(InputError):
        Genotype.load(tmp_path / "it")
    assert time.process_time() - begin < 5


def test_a_file_without_an_end_is_refused():
    with pytest.raises(InputError, match=r"/dev/zero: expected at most \d+ bytes"):
        Genotype.load("/dev/zero")


def test_nothing_is_evaluated(tmp_path):
    target = tmp_path / "touched"
    for part in (
        f"open({str(target)!r}, 'w')",
        f"[open({str(target)!r}, 'w') for _ in 'a']",
        f"f'{{open({str(target)!r})}}'",
    ):
        with pytest.raises(InputError):
            Genotype.from_text(CALL.replace("range(2, 6)", part, 1))
    assert not target.exists()
