"""The text format of DARTS: ``Genotype(normal=[('sep_conv_3x3_u', 0), …], …)``. Parsed, never evaluated."""

from __future__ import annotations

import ast
from typing import Any

from bionas_fast.errors import InputError, shown
from bionas_fast.space.candidates import Candidate
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.formats.located import located
from bionas_fast.space.skeleton import DARTS

_SUFFIXES = {"_u": "usf", "_br": "brsf", "_fr": "frsf", "_fa": "fa"}
_SKIP_SUFFIXES = {"_u": "usf", "_b": "brsf", "_f": "frsf"}


def parse_published_name(name: str) -> Candidate:
    """Parse a candidate's name as used by the published code, such as ``sep_conv_3x3_br``."""
    suffixes = _SKIP_SUFFIXES if name.startswith("skip_connect") else _SUFFIXES
    for suffix, rule in suffixes.items():
        if name.endswith(suffix):
            return Candidate(name.removesuffix(suffix), rule)
    return Candidate(name) if name in ("none", "max_pool_3x3", "avg_pool_3x3") else Candidate(name, "bp")


def read(text: str) -> dict[str, Cell]:
    """Parse the two cells; see :meth:`Genotype.from_darts`."""
    try:
        tree = ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f"line {error.lineno}, column {error.offset}: " if isinstance(error, SyntaxError) else ""
        raise InputError(f"genotype: {where}not the text of a Genotype(...)") from None
    value = getattr(tree.body[0], "value", None) if len(tree.body) == 1 else None
    if not (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "Genotype"
        and not value.args
    ):
        raise InputError("genotype: expected one Genotype(normal=…, normal_concat=…, reduce=…, reduce_concat=…)")
    fields = {keyword.arg: keyword.value for keyword in value.keywords}
    cells = {}
    for kind in DARTS.kinds:
        if kind not in fields:
            raise InputError(f"genotype: {kind!r} is missing")
        pairs = _literal(fields[kind], kind)
        if not isinstance(pairs, (list, tuple)) or not pairs or len(pairs) % 2:
            raise InputError(f"{kind}: expected a list with two edges per node")
        edges = []
        for i, pair in enumerate(pairs):
            where = f"{kind}[{i}]"
            match pair:
                case (str(name), int(source)) if _is_state(source):
                    edges.append(Edge(located(where, parse_published_name, name), source))
                case _:
                    raise InputError(f"{where}: expected ('operation', source), got {shown(pair, 60)}")
        nodes = tuple(zip(edges[::2], edges[1::2], strict=True))
        concat = (
            _literal(fields[f"{kind}_concat"], f"{kind}_concat")
            if f"{kind}_concat" in fields
            else range(2, 2 + len(nodes))
        )
        if not isinstance(concat, (list, tuple, range)) or not all(map(_is_state, concat)):
            raise InputError(f"{kind}_concat: expected states, such as range(2, 6)")
        try:
            cells[kind] = Cell(nodes, tuple(concat))
        except InputError as error:
            raise InputError(f"{kind}: {error}") from None
    return cells


def _is_state(value: object) -> bool:
    return type(value) is int and 0 <= value < 1000


def _literal(node: ast.AST, where: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        bounds = [_literal(arg, where) for arg in node.args]
        if 1 <= len(bounds) <= 2 and all(type(b) is int and 0 <= b < 100 for b in bounds):
            return range(*bounds)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{where}: expected plain values") from None
