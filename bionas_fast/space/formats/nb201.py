"""The string format of NAS-Bench-201: ``|nor_conv_3x3@usf~0|+|none~0|skip_connect~1|+|…|``, edges between bars.

Nodes are separated by ``+``; the number after ``~`` is the source state of the edge, 0 for the input of the cell. An
operation without a rule is trained by back-propagation, so the strings of the benchmark are valid as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from bionas_fast.errors import InputError
from bionas_fast.space.candidates import NONE, Candidate, get_operation
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.formats.located import located
from bionas_fast.space.skeleton import NB201

_PLAIN = "bp"


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


def read(text: str) -> dict[str, Cell]:
    """Parse the cell; see :meth:`Genotype.from_nb201`."""
    nodes = []
    for i, part in enumerate(text.strip().split("+")):
        where = f"node {i + 1}"
        if len(part) < 2 or part[0] != "|" or part[-1] != "|":
            raise InputError(f"{where}: expected edges between bars, such as '|nor_conv_3x3@usf~0|', got {part!r:.60}")
        read = [located(f"{where}, edge {k}", _parse_edge, word) for k, word in enumerate(part[1:-1].split("|"))]
        sources = [source for source, _ in read]
        if sorted(sources) != list(range(i + 1)):
            raise InputError(f"{where}: expected one edge from each of the states 0 to {i}, got {sources}")
        nodes.append(tuple(Edge(candidate, source) for source, candidate in sorted(read, key=_source) if candidate))
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
