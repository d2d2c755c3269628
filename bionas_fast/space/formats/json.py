"""The JSON format of genotypes: one node per line, an edge is ``"sep_conv_3x3@usf<-0"``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bionas_fast.errors import InputError, unknown
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.formats.located import located
from bionas_fast.space.formats.source import FORMS, expect_size
from bionas_fast.space.skeleton import DARTS, SKELETONS, Skeleton

FORMAT_VERSION = 1


def as_data(cells: Mapping[str, Cell], fixed: Mapping[str, str]) -> dict[str, Any]:
    """Convert cells and fixed rules to the plain values of the JSON."""
    return {
        "format_version": FORMAT_VERSION,
        **{
            kind: {"nodes": [[str(edge) for edge in edges] for edges in cell.nodes], "concat": list(cell.concat)}
            for kind, cell in cells.items()
        },
        "fixed": dict(fixed),
    }


def write(cells: Mapping[str, Cell], fixed: Mapping[str, str]) -> str:
    """Write cells and fixed rules as JSON; see :meth:`Genotype.to_json`."""
    texts = ",\n".join(f'  "{kind}": {_write_cell(cell)}' for kind, cell in cells.items())
    return f'{{\n  "format_version": {FORMAT_VERSION},\n{texts},\n  "fixed": {json.dumps(dict(fixed))}\n}}\n'


def _write_cell(cell: Cell) -> str:
    lines = ",\n".join("      " + json.dumps([str(edge) for edge in edges]) for edges in cell.nodes)
    return f'{{\n    "nodes": [\n{lines}\n    ],\n    "concat": {json.dumps(list(cell.concat))}\n  }}'


def read(text: str) -> tuple[dict[str, Cell], dict[str, str]]:
    """Parse cells and fixed rules; see :meth:`Genotype.from_json`."""
    expect_size(text)
    try:
        data = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        place = f"genotype: line {error.lineno}, column {error.colno}"
        raise InputError(f"{place}: {error.msg}; expected {FORMS}") from None
    except RecursionError:
        raise InputError("genotype: nested too deeply") from None
    except InputError:
        raise
    except ValueError:
        raise InputError("genotype: a number has too many digits") from None
    top = _expect(data, dict, "genotype")
    skeleton = next((s for s in SKELETONS if any(kind in top for kind in s.kinds)), DARTS)
    _only_keys(top, ("format_version", *skeleton.kinds, "fixed"), "genotype")
    version = top.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise InputError(f"genotype: format_version is {version!r}; this version reads {FORMAT_VERSION}")
    cells = {kind: _read_cell(top, kind, skeleton) for kind in skeleton.kinds}
    fixed = _expect(top.get("fixed", {}), dict, "fixed")
    for layer, rule in fixed.items():
        _expect(rule, str, f"fixed.{layer}")
    return cells, fixed


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise InputError(f"genotype: {key!r} occurs twice")
        data[key] = value
    return data


_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    type(None): "null",
    bool: "a truth value",
}


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = _JSON_NAMES.get(type(value), type(value).__name__)
        raise InputError(f"{where}: expected {_JSON_NAMES[kind]}, got {got}")
    return value


def _only_keys(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in known:
            raise unknown("entry", key, known, where)


def _read_cell(top: Mapping[str, Any], kind: str, skeleton: Skeleton) -> Cell:
    if kind not in top:
        raise InputError(f"genotype: {kind!r} is missing")
    data = _expect(top[kind], dict, kind)
    _only_keys(data, ("nodes", "concat"), kind)
    if "nodes" not in data:
        raise InputError(f"{kind}: 'nodes' is missing")
    nodes = []
    for i, edges in enumerate(_expect(data["nodes"], list, f"{kind}.nodes")):
        node = []
        for k, text in enumerate(_expect(edges, list, f"{kind}.nodes[{i}]")):
            where = f"{kind}.nodes[{i}][{k}]"
            node.append(located(where, Edge.parse, _expect(text, str, where)))
        nodes.append(tuple(node))
    concat = _expect(data.get("concat", list(skeleton.output(len(nodes)))), list, f"{kind}.concat")
    states = tuple(_expect(state, int, f"{kind}.concat[{i}]") for i, state in enumerate(concat))
    try:
        return Cell(tuple(nodes), states, skeleton)
    except InputError as error:
        raise InputError(f"{kind}.{error}") from None
