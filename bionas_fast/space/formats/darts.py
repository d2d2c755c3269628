"""The text format of DARTS: ``Genotype(normal=[('sep_conv_3x3_u', 0), …], …)``. Parsed, never evaluated."""

from __future__ import annotations

import ast
from typing import Any

from bionas_fast.errors import InputError, shown, unknown
from bionas_fast.space.candidates import Candidate, get_operation
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.formats.located import located
from bionas_fast.space.formats.source import Call
from bionas_fast.space.names import operation_names
from bionas_fast.space.skeleton import DARTS

#: The fields of the published named tuple, in its order.
_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
_SUFFIXES = {"_u": "usf", "_br": "brsf", "_fr": "frsf", "_fa": "fa"}
_SKIP_SUFFIXES = {"_u": "usf", "_b": "brsf", "_f": "frsf"}


def parse_published_name(name: str) -> Candidate:
    """Parse a candidate's name as used by the published code, such as ``sep_conv_3x3_br``, or by this package."""
    if "@" in name:
        return Candidate.parse(name)
    if name not in operation_names():
        suffixes = _SKIP_SUFFIXES if name.startswith("skip_connect") else _SUFFIXES
        for suffix, rule in suffixes.items():
            if name.endswith(suffix):
                return Candidate(name.removesuffix(suffix), rule)
    return Candidate(name, "bp" if get_operation(name).takes_rule else None)


def read(call: Call) -> dict[str, Cell]:
    """Parse the two cells; see :meth:`Genotype.from_darts`."""
    fields = _fields(call)
    cells = {}
    for kind in DARTS.kinds:
        if kind not in fields:
            raise InputError(f"{call.place()}: {kind!r} is missing")
        edges = _edges(call, fields[kind], kind)
        nodes = tuple(zip(edges[::2], edges[1::2], strict=True))
        name = f"{kind}_concat"
        concat = call.value(fields[name], name) if name in fields else DARTS.output(len(nodes))
        if isinstance(concat, str | int) or not all(map(_is_state, concat)):
            raise InputError(f"{call.place(fields[name])}: {name}: expected states, such as range(2, 6)")
        try:
            cells[kind] = Cell(nodes, tuple(concat))
        except InputError as error:
            raise error.at(f"{call.place(fields[kind])}: {kind}") from None
    return cells


def _fields(call: Call) -> dict[str, ast.expr]:
    tree = call.parse()
    if len(tree.args) > len(_FIELDS) or any(isinstance(argument, ast.Starred) for argument in tree.args):
        raise InputError(f"{call.place()}: expected Genotype(normal=…, normal_concat=…, reduce=…, reduce_concat=…)")
    fields = dict(zip(_FIELDS, tree.args, strict=False))
    for keyword in tree.keywords:
        if keyword.arg not in _FIELDS:
            raise unknown("entry", keyword.arg or "**", _FIELDS, call.place(keyword))
        fields[keyword.arg] = keyword.value
    return fields


def _edges(call: Call, node: ast.expr, kind: str) -> list[Edge]:
    pairs: Any = call.value(node, kind)
    if not isinstance(pairs, list) or not pairs or len(pairs) % 2:
        raise InputError(f"{call.place(node)}: {kind}: expected a list with two edges per node")
    places = node.elts if isinstance(node, ast.List | ast.Tuple) else [node] * len(pairs)
    edges = []
    for i, (pair, place) in enumerate(zip(pairs, places, strict=True)):
        where = f"{call.place(place)}: {kind}[{i}]"
        match pair:
            case [str(name), int(source)] if _is_state(source):
                edges.append(Edge(located(where, parse_published_name, name), source))
            case _:
                raise InputError(f"{where}: expected ('operation', source), got {shown(pair, 60)}")
    return edges


def _is_state(value: object) -> bool:
    return type(value) is int and 0 <= value < 1000
