"""The string format of NAS-Bench-201: ``|nor_conv_3x3@usf~0|+|none~0|skip_connect~1|+|…|``, edges between bars.

Nodes are separated by ``+``; the number after ``~`` is the source state of the edge, 0 for the input of the cell. An
operation without a rule is trained by back-propagation, so the strings of the benchmark are valid as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bionas_fast.errors import InputError, shown
from bionas_fast.space.candidates import NONE, Candidate, get_operation
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.formats.located import located
from bionas_fast.space.formats.source import Call, expect_size, refuse
from bionas_fast.space.skeleton import NB201

_PLAIN = "bp"
# The string begins with an edge, at the beginning of a word; what follows it is checked by the parser.
_STRING = re.compile(r"(?<![^\s'\"(\[:=,>])\|[^\s|~+'\"]+~\d[^\s'\"]*")


def write(cells: Mapping[str, Cell]) -> str:
    """Write the cell as a string; see :meth:`Genotype.to_nb201`."""
    if tuple(cells) != NB201.kinds:
        raise InputError(f"genotype: a NAS-Bench-201 string has one cell; this genotype has {', '.join(cells)}")
    nodes = []
    for i, edges in enumerate(cells["cell"].nodes):
        candidates = {edge.source: edge.candidate for edge in edges}
        texts = (f"{_name(candidates.get(source))}~{source}|" for source in range(i + 1))
        nodes.append("|" + "".join(texts))
    return "+".join(nodes)


def _name(candidate: Candidate | None) -> str:
    if candidate is None:
        return NONE
    return candidate.operation if candidate.rule == _PLAIN else str(candidate)


def find(text: str) -> re.Match[str] | None:
    """Find the string in a text, up to the next blank or quote."""
    expect_size(text)
    return _STRING.search(text)


def read(text: str) -> dict[str, Cell]:
    """Parse the cell; see :meth:`Genotype.from_nb201`.

    Raises:
        InputError: the text contains no such string, or different ones.
    """
    expect_size(text)
    text = re.sub(r"\|[ \t]*\+[ \t]*(?=\|)", "|+", text)
    found = {match[0]: match for match in _STRING.finditer(text)}
    if len(found) > 1:
        lines = ", ".join(str(text.count("\n", 0, match.start()) + 1) for match in [*found.values()][:8])
        raise InputError(f"genotype: expected one, got {len(found)} different strings, in lines {lines}")
    string, match = next(iter(found.items()), (text.strip(), None))
    if match is None and string and string[0] != "|":
        raise refuse(text)
    string = string.rstrip(",;.:)]}")
    start = match.start() if match else 0
    line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)
    place = f"genotype: line {line}, column {column}"
    nodes = []
    for i, part in enumerate(string.split("+")):
        where = f"{place}: node {i + 1}"
        if len(part) < 2 or part[0] != "|" or part[-1] != "|":
            raise InputError(f"{where}: expected edges between bars, such as '|nor_conv_3x3@usf~0|', got {part!r:.60}")
        words = part[1:-1].split("|")
        nodes.append([located(f"{where}, edge {k}", _parse_edge, word) for k, word in enumerate(words)])
    return _cell(nodes, place)


def read_call(call: Call) -> dict[str, Cell]:
    """Parse the text that the benchmark's code prints, ``Structure(4 nodes with |…|)``, or its constructor.

    The constructor is ``Structure([(('nor_conv_3x3', 0),), (('skip_connect', 0), ('none', 1)), …])``.
    """
    if string := find(call.source):
        column = call.column + string.start()
        return read("\n" * (call.line - 1) + " " * (column - 1) + string[0])
    tree = call.parse()
    if len(tree.args) != 1 or tree.keywords:
        raise InputError(f"{call.place()}: expected Structure([(('nor_conv_3x3', 0),), …])")
    nodes = []
    value = call.value(tree.args[0], "nodes")
    for i, pairs in enumerate(value if isinstance(value, list) else [value]):
        where = f"{call.place()}: node {i + 1}"
        edges = []
        for k, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
            match pair:
                case [str(name), int(source)]:
                    edges.append(located(f"{where}, edge {k}", _parse_edge, f"{name}~{source}"))
                case _:
                    raise InputError(f"{where}, edge {k}: expected ('operation', source), got {shown(pair, 60)}")
        nodes.append(edges)
    return _cell(nodes, call.place())


def _cell(read: Sequence[Sequence[tuple[int, Candidate | None]]], where: str) -> dict[str, Cell]:
    nodes = []
    for i, edges in enumerate(read):
        sources = [source for source, _ in edges]
        if sorted(sources) != list(range(i + 1)):
            raise InputError(
                f"{where}: node {i + 1}: expected one edge from each of the states 0 to {i}, got {shown(sources, 60)}"
            )
        nodes.append(tuple(Edge(candidate, source) for source, candidate in sorted(edges, key=_source) if candidate))
    return {"cell": Cell(tuple(nodes), NB201.output(len(nodes)), NB201)}


def _source(read: tuple[int, Candidate | None]) -> int:
    return read[0]


def _parse_edge(text: str) -> tuple[int, Candidate | None]:
    name, tilde, source = text.partition("~")
    if not tilde:
        raise InputError(f"{text!r:.60} has no source; an edge reads like 'nor_conv_3x3@usf~0'")
    if not (source.isascii() and source.isdigit()) or len(source) > 3:
        raise InputError(f"source {source!r:.60} in {text!r:.60} is not a state's number")
    if name == NONE:
        return int(source), None
    operation, at, rule = name.partition("@")
    if not at and get_operation(operation).takes_rule:
        return int(source), Candidate(operation, _PLAIN)
    return int(source), Candidate(operation, rule if at else None)
