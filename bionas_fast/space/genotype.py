"""The genotype: which candidate stands on which edge of the two cells, and the rules of everything around them.

Written as JSON that a person can read and edit; an edge is ``"sep_conv_3x3@usf<-0"``: operation, rule, source state
(0 and 1 are the outputs of the two preceding cells, 2 is the cell's first node, and so on).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bionas_fast import rules
from bionas_fast.errors import InputError, unknown, unregistered
from bionas_fast.space.candidates import CELL_KINDS, NONE, Candidate, Space

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
        InputError: a source that does not exist yet at that node, ``none`` on an edge, a node without edges, a
            concatenation of states that are not nodes. The message says where.
    """

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InputError("nodes: a cell needs at least one node")
        for i, edges in enumerate(self.nodes):
            if not edges:
                raise InputError(f"nodes[{i}]: a node needs at least one edge")
            for k, edge in enumerate(edges):
                if edge.source > i + 1:
                    raise InputError(
                        f"nodes[{i}][{k}]: source {edge.source} in {str(edge)!r} does not exist yet; "
                        f"this node sees states 0 to {i + 1}"
                    )
                if edge.candidate.operation == NONE:
                    raise InputError(f"nodes[{i}][{k}]: 'none' cannot stand in a found cell; leave the edge out")
        if not self.concat:
            raise InputError("concat: the output needs at least one node")
        for state in self.concat:
            if not 2 <= state < 2 + len(self.nodes):
                raise InputError(f"concat: state {state} is no node; nodes are 2 to {1 + len(self.nodes)}")
        if len(set(self.concat)) != len(self.concat):
            raise InputError(f"concat: a state stands twice in {list(self.concat)}")

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
    given = given or {}
    for layer, rule in given.items():
        if layer not in FIXED_LAYERS:
            raise unknown("layer", layer, FIXED_LAYERS, "fixed")
        if rule not in rules.names():
            raise unregistered("rule", rule, rules.names(), f"fixed.{layer}")
    return {**dict.fromkeys(FIXED_LAYERS, "bp"), **given}


@dataclass(frozen=True)
class Genotype:
    """An architecture and its learning rules.

    Attributes:
        normal, reduce: the two cells.
        fixed: the rules of ``stem``, ``preprocess`` and ``head``; ``bp`` unless said otherwise.
    """

    normal: Cell
    reduce: Cell
    fixed: Mapping[str, str] = field(default_factory=fixed_rules)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", fixed_rules(self.fixed))

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def cells(self) -> dict[str, Cell]:
        """``{"normal": …, "reduce": …}``"""
        return {kind: getattr(self, kind) for kind in CELL_KINDS}

    @property
    def rules(self) -> tuple[str, ...]:
        """The learning rules on the searched edges, without repetition, in order of appearance."""
        used = (edge.candidate.rule for cell in self.cells.values() for edge in cell.edges)
        return tuple(dict.fromkeys(rule for rule in used if rule is not None))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits, equal for equal architectures: the order of a node's edges does not count."""
        canonical = self._json()
        for kind in CELL_KINDS:
            for edges in canonical[kind]["nodes"]:
                edges.sort()
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]

    def with_rule(self, rule: str) -> Genotype:
        """The same architecture with one rule on every searched edge."""
        rules.get(rule)

        def cell(old: Cell) -> Cell:
            return Cell(
                tuple(
                    tuple(
                        Edge(Candidate(e.candidate.operation, rule if e.candidate.rule else None), e.source)
                        for e in edges
                    )
                    for edges in old.nodes
                ),
                old.concat,
            )

        return Genotype(cell(self.normal), cell(self.reduce), self.fixed)

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
        _only_keys(top, ("format_version", *CELL_KINDS, "fixed"), "genotype")
        version = top.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise InputError(f"genotype: format_version is {version!r}; this version reads {FORMAT_VERSION}")
        cells = {kind: _read_cell(top, kind) for kind in CELL_KINDS}
        fixed = _expect(top.get("fixed", {}), dict, "fixed")
        for layer, rule in fixed.items():
            _expect(rule, str, f"fixed.{layer}")
        return cls(cells["normal"], cells["reduce"], fixed)

    @classmethod
    def from_darts(cls, text: str) -> Genotype:
        """Read the text form of DARTS, ``Genotype(normal=[('sep_conv_3x3', 0), …], normal_concat=…, …)``.

        Rules are read from the suffixes of the paper's code (``_u``, ``_br``, ``_fr``, ``_fa``; ``skip_connect_u``,
        ``_b``, ``_f``); an operation without one is trained by ``bp``. The text is parsed, never evaluated.

        Raises:
            InputError: not such a text; the message says where.
        """
        from bionas_fast.space.published import parse_genotype  # reads into this class

        return parse_genotype(text)

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Read a genotype from a file in either form.

        Raises:
            InputError: no such file, or not a genotype. The message names the file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read genotype {path}: {error}") from None
        try:
            return cls.from_darts(text) if text.lstrip().startswith("Genotype") else cls.from_json(text)
        except InputError as error:
            raise error.at(str(path)) from None


def derive_genotype(
    alphas: Mapping[str, Tensor],
    space: Space,
    fixed: Mapping[str, str] | None = None,
    edges_per_node: int = 2,
    shares: Mapping[str, Tensor] | None = None,
) -> Genotype:
    """The discrete cells that architecture parameters stand for (DARTS, section 2.4).

    Each node keeps the edges with the largest softmax weight of any candidate but ``none`` (ties: the smaller
    source), each with its best candidate other than ``none`` (ties: the first).

    Args:
        alphas: ``normal`` and ``reduce``, each [edges, candidates] before the softmax.
        shares: for each kind of cell what multiplies the weights of an edge, [edges] (PC-DARTS); 1 by default.
    """
    wanted = (len(space.edges), len(space.candidates))
    eligible = [k for k, c in enumerate(space.candidates) if c.operation != NONE]

    def cell(kind: str) -> Cell:
        alpha = alphas[kind]
        if tuple(alpha.shape) != wanted:
            raise InputError(f"alphas[{kind!r}] has shape {list(alpha.shape)}; space {space.name!r} has {list(wanted)}")
        if not torch.isfinite(alpha).all():
            raise InputError(f"alphas[{kind!r}] holds values that are not finite")
        weights = torch.softmax(alpha.detach().to("cpu", torch.float64), dim=-1)[:, eligible]
        best, choice = weights.max(dim=-1)  # max returns the first of equals
        if shares:
            best = best * shares[kind].detach().to(best)
        nodes = []
        for node in range(space.nodes):
            rows = [row for row, edge in enumerate(space.edges) if edge[0] == node]
            kept = sorted(rows, key=lambda row: -best[row].item())[:edges_per_node]  # stable: smaller source first
            nodes.append(tuple(Edge(space.candidates[eligible[int(choice[row])]], space.edges[row][1]) for row in kept))
        return Cell(tuple(nodes), tuple(range(2, 2 + space.nodes)))

    return Genotype(cell("normal"), cell("reduce"), fixed or {})


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


def _read_cell(top: Mapping[str, Any], kind: str) -> Cell:
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
    concat = _expect(data.get("concat", list(range(2, 2 + len(nodes)))), list, f"{kind}.concat")
    states = tuple(_expect(state, int, f"{kind}.concat[{i}]") for i, state in enumerate(concat))
    try:
        return Cell(tuple(nodes), states)
    except InputError as error:
        raise InputError(f"{kind}.{error}") from None


def located(where: str, parse: Callable[[str], Any], text: str) -> Any:
    """``parse(text)``, with the place in front of any complaint."""
    try:
        return parse(text)
    except InputError as error:
        raise error.at(where) from None
