"""The genotype: which candidate stands on which edge of the cells, and the rules of everything around them.

Written as JSON that a person can read and edit; an edge is ``"sep_conv_3x3@usf<-0"``: operation, rule, source state
(in a cell of DARTS 0 and 1 are the outputs of the two preceding cells, 2 is the cell's first node, and so on).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bionas_fast import rules
from bionas_fast.errors import InputError, unknown
from bionas_fast.space.candidates import NONE, Candidate
from bionas_fast.space.skeleton import DARTS, SKELETONS, Skeleton

FORMAT_VERSION = 1
#: The layers around the searched edges, whose rule is part of the genotype.
FIXED_LAYERS = ("stem", "preprocess", "head")


@dataclass(frozen=True)
class Edge:
    """One edge of a found cell: a candidate applied to a source state."""

    candidate: Candidate
    source: int

    @classmethod
    def parse(cls, text: str) -> Edge:
        """Read ``operation@rule<-source``."""
        left, arrow, right = text.partition("<-")
        if not arrow:
            raise InputError(f"{text!r} has no source; an edge reads like 'sep_conv_3x3@usf<-0'")
        if not (right.isascii() and right.isdigit()) or len(right) > 3:
            raise InputError(f"source {right!r} in {text!r} is not a state's number")
        return cls(Candidate.parse(left), int(right))

    def __str__(self) -> str:
        return f"{self.candidate}<-{self.source}"


@dataclass(frozen=True)
class Cell:
    """A found cell: the edges into each node, and the nodes whose concatenation is the output.

    Raises:
        InputError: a source that does not exist yet at that node, ``none`` on an edge, a concatenation of states that
            are not nodes. In a cell of DARTS, a node without edges; in one of NAS-Bench-201, two edges between the same
            states, an output other than the last node. The message says where.
    """

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]
    skeleton: Skeleton = DARTS

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InputError("nodes: a cell needs at least one node")
        inputs = len(self.skeleton.input_names)
        every_edge = self.skeleton.edges_per_node is None
        for i, edges in enumerate(self.nodes):
            if not edges and not every_edge:
                raise InputError(f"nodes[{i}]: a node needs at least one edge")
            for k, edge in enumerate(edges):
                last = i + inputs - 1
                if edge.source > last:
                    raise InputError(
                        f"nodes[{i}][{k}]: source {edge.source} in {str(edge)!r} does not exist yet; "
                        f"this node sees states 0 to {last}"
                    )
                if every_edge and edge.source in [other.source for other in edges[:k]]:
                    raise InputError(f"nodes[{i}][{k}]: a second edge from state {edge.source}")
                if edge.candidate.operation == NONE:
                    raise InputError(f"nodes[{i}][{k}]: 'none' cannot stand in a found cell; leave the edge out")
        if not self.concat:
            raise InputError("concat: the output needs at least one node")
        for state in self.concat:
            if not inputs <= state < inputs + len(self.nodes):
                raise InputError(
                    f"concat: state {state} is no node; nodes are {inputs} to {inputs + len(self.nodes) - 1}"
                )
        if len(set(self.concat)) != len(self.concat):
            raise InputError(f"concat: a state stands twice in {list(self.concat)}")
        output = self.skeleton.output(len(self.nodes))
        if not self.skeleton.joined and self.concat != output:
            raise InputError(f"concat: the output is the last node, {list(output)}; got {list(self.concat)}")

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, node by node."""
        return tuple(edge for edges in self.nodes for edge in edges)

    def _json(self) -> dict[str, Any]:
        return {"nodes": [[str(e) for e in edges] for edges in self.nodes], "concat": list(self.concat)}


def fixed_rules(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The rules of stem, preprocess and head: those given, ``bp`` for the others.

    Raises:
        InputError: an unknown layer or rule.
    """
    found = dict.fromkeys(FIXED_LAYERS, "bp")
    for layer, rule in (given or {}).items():
        if layer not in FIXED_LAYERS:
            raise unknown("layer", layer, FIXED_LAYERS, "fixed")
        try:
            found[layer] = rules.get(rule).name
        except InputError as error:
            raise error.at(f"fixed.{layer}") from None
    return found


@dataclass(frozen=True, init=False)
class Genotype:
    """An architecture and its learning rules.

    Args:
        normal, reduce: the two cells of an architecture like those of DARTS.
        cells: those of another skeleton by their kind: ``cell`` for NAS-Bench-201.

    Attributes:
        cells: by their kind, ``{"normal": …, "reduce": …}``.
        fixed: the rules of ``stem``, ``preprocess`` (the layers in front of cells, and between stages) and ``head``;
            ``bp`` unless said otherwise.

    Raises:
        InputError: cells that do not belong together; an unknown layer or rule.
    """

    cells: dict[str, Cell]
    fixed: dict[str, str]

    def __init__(
        self,
        normal: Cell | None = None,
        reduce: Cell | None = None,
        fixed: Mapping[str, str] | None = None,
        **cells: Cell,
    ) -> None:
        given = {"normal": normal, "reduce": reduce, **cells}
        found = {kind: cell for kind, cell in given.items() if cell is not None}
        if not any(
            tuple(found) == known.kinds and all(cell.skeleton == known for cell in found.values())
            for known in SKELETONS
        ):
            wanted = " or ".join(" and ".join(known.kinds) for known in SKELETONS)
            raise InputError(f"genotype: expected the cells {wanted}, of that skeleton; got {', '.join(found)}")
        object.__setattr__(self, "cells", found)
        object.__setattr__(self, "fixed", fixed_rules(fixed))

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def skeleton(self) -> Skeleton:
        """How the cells are wired, and networks made of them."""
        return next(iter(self.cells.values())).skeleton

    @property
    def normal(self) -> Cell:
        """The cell that keeps the size, of an architecture like those of DARTS."""
        return self.cells["normal"]

    @property
    def reduce(self) -> Cell:
        """The cell that halves it."""
        return self.cells["reduce"]

    @property
    def rules(self) -> tuple[str, ...]:
        """The learning rules on the searched edges, without repetition, in order of appearance."""
        used = (edge.candidate.rule for cell in self.cells.values() for edge in cell.edges)
        return tuple(dict.fromkeys(rule for rule in used if rule is not None))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits, equal for equal architectures: the order of a node's edges does not count."""
        canonical = self._json()
        for kind in self.cells:
            for edges in canonical[kind]["nodes"]:
                edges.sort()
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]

    def with_rule(self, rule: str) -> Genotype:
        """The same architecture with one rule on every searched edge."""
        rules.get(rule)

        def cell(old: Cell) -> Cell:
            nodes = tuple(
                tuple(
                    Edge(Candidate(e.candidate.operation, rule if e.candidate.rule else None), e.source) for e in edges
                )
                for edges in old.nodes
            )
            return replace(old, nodes=nodes)

        return Genotype(**{kind: cell(old) for kind, old in self.cells.items()}, fixed=self.fixed)

    def _json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            **{kind: cell._json() for kind, cell in self.cells.items()},
            "fixed": dict(self.fixed),
        }

    def to_json(self) -> str:
        """The genotype as text, one node a line."""

        def cell(c: Cell) -> str:
            lines = ",\n".join("      " + json.dumps([str(e) for e in edges]) for edges in c.nodes)
            return f'{{\n    "nodes": [\n{lines}\n    ],\n    "concat": {json.dumps(list(c.concat))}\n  }}'

        cells = ",\n".join(f'  "{kind}": {cell(c)}' for kind, c in self.cells.items())
        return f'{{\n  "format_version": {FORMAT_VERSION},\n{cells},\n  "fixed": {json.dumps(dict(self.fixed))}\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: not JSON (line and column), or not a genotype (the path of the entry that is wrong).
        """
        try:
            data = json.loads(text, object_pairs_hook=_no_repeats)
        except json.JSONDecodeError as error:
            raise InputError(f"genotype: line {error.lineno}, column {error.colno}: {error.msg}") from None
        except RecursionError:
            raise InputError("genotype: nested too deeply") from None
        except InputError:
            raise
        except ValueError:
            raise InputError("genotype: a number has too many digits") from None
        return cls._from_data(data)

    @classmethod
    def _from_data(cls, data: object) -> Genotype:
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
        return cls(**cells, fixed=fixed)

    @classmethod
    def from_darts(cls, text: str) -> Genotype:
        """Read the text form of DARTS, ``Genotype(normal=[('sep_conv_3x3', 0), …], normal_concat=…, …)``.

        Rules are read from the suffixes of the paper's code (``_u``, ``_br``, ``_fr``, ``_fa``; ``skip_connect_u``,
        ``_b``, ``_f``); an operation without one is trained by ``bp``. The text is parsed, never evaluated.

        Raises:
            InputError: not such a text; the message says where.
        """
        from bionas_fast.space.formats.darts import parse_genotype  # reads into this class

        return parse_genotype(text)

    @classmethod
    def from_nb201(cls, text: str) -> Genotype:
        """Read the string of a cell of NAS-Bench-201, ``|nor_conv_3x3@usf~0|+|none~0|skip_connect~1|+|…|``.

        An operation without a rule is trained by ``bp``.

        Raises:
            InputError: not such a string; the message names the node and the edge.
        """
        from bionas_fast.space.formats.nb201 import parse_string  # reads into this class

        return parse_string(text)

    def to_nb201(self) -> str:
        """The cell as such a string, with ``bp`` left out: what :meth:`from_nb201` reads.

        Raises:
            InputError: an architecture like those of DARTS.
        """
        from bionas_fast.space.formats.nb201 import write_string

        return write_string(self)

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Read a genotype from a file: JSON, the text of DARTS, or a string of NAS-Bench-201.

        Raises:
            InputError: no such file, or not a genotype. The message names the file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read genotype {path}: {error}") from None
        try:
            match text.lstrip()[:1]:
                case "G":
                    return cls.from_darts(text)
                case "|":
                    return cls.from_nb201(text)
            return cls.from_json(text)
        except InputError as error:
            raise error.at(str(path)) from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"genotype: {key!r} is given twice")
        found[key] = value
    return found


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


def located(where: str, parse: Callable[[str], Any], text: str) -> Any:
    """``parse(text)``, with the place in front of any complaint."""
    try:
        return parse(text)
    except InputError as error:
        raise error.at(where) from None
