"""The genotype: the candidate on every edge of the cells, and the rules of the fixed layers.

Its JSON is meant to be read and edited; an edge is ``"sep_conv_3x3@usf<-0"``: operation, rule, source state (in a DARTS
cell, 0 and 1 are the outputs of the two preceding cells, 2 is the cell's first node, and so on).
"""

from __future__ import annotations

import codecs
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from bionas_fast import rules
from bionas_fast.errors import InputError, unknown
from bionas_fast.space.candidates import SKIP, Candidate
from bionas_fast.space.edges import Cell, Edge
from bionas_fast.space.formats import json as json_format
from bionas_fast.space.formats import nb201
from bionas_fast.space.formats import text as text_format
from bionas_fast.space.formats.source import LARGEST_TEXT, refuse
from bionas_fast.space.skeleton import SKELETONS, Skeleton

#: The layers outside the searched edges, whose rules are part of the genotype.
FIXED_LAYERS = ("stem", "preprocess", "head")


def fixed_rules(fixed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Complete the rules of stem, preprocess and head: ``bp`` where none is given.

    Raises:
        InputError: an unknown layer or rule.
    """
    complete = dict.fromkeys(FIXED_LAYERS, "bp")
    for layer, rule in (fixed or {}).items():
        if layer not in FIXED_LAYERS:
            raise unknown("layer", layer, FIXED_LAYERS, "fixed")
        try:
            complete[layer] = rules.get(rule).name
        except InputError as error:
            raise error.at(f"fixed.{layer}") from None
    return complete


@dataclass(frozen=True, init=False, repr=False)
class Genotype:
    """An architecture and its learning rules.

    Args:
        normal, reduce: the two cells of a DARTS architecture.
        cells: for other skeletons, the cells by kind: ``cell`` for NAS-Bench-201.

    Attributes:
        cells: the cells by kind, ``{"normal": …, "reduce": …}``.
        fixed: the rules of ``stem``, ``preprocess`` (the layers before cells and between stages) and ``head``;
            ``bp`` by default.

    Raises:
        InputError: cells of different skeletons; an unknown layer or rule.
    """

    cells: dict[str, Cell]
    fixed: dict[str, str]
    #: Draws a genotype as HTML, for notebooks; set by the package of reports.
    to_html: ClassVar[Callable[[Genotype], str] | None] = None

    def __init__(
        self,
        normal: Cell | None = None,
        reduce: Cell | None = None,
        fixed: Mapping[str, str] | None = None,
        **cells: Cell,
    ) -> None:
        optional = {"normal": normal, "reduce": reduce, **cells}
        cells = {kind: cell for kind, cell in optional.items() if cell is not None}
        if not any(
            tuple(cells) == known.kinds and all(cell.skeleton == known for cell in cells.values())
            for known in SKELETONS
        ):
            expected = " or ".join(" and ".join(known.kinds) for known in SKELETONS)
            raise InputError(f"genotype: expected the cells {expected}, of that skeleton; got {', '.join(cells)}")
        object.__setattr__(self, "cells", cells)
        object.__setattr__(self, "fixed", fixed_rules(fixed))

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def skeleton(self) -> Skeleton:
        """The wiring of the cells, and of networks made of them."""
        return next(iter(self.cells.values())).skeleton

    @property
    def normal(self) -> Cell:
        """The normal cell of a DARTS architecture, which preserves the size."""
        return self.cells["normal"]

    @property
    def reduce(self) -> Cell:
        """The reduction cell of a DARTS architecture, which halves the size."""
        return self.cells["reduce"]

    def cell(self, kind: str) -> Cell:
        """Return the cell of a kind.

        Raises:
            InputError: an unknown kind.
        """
        if kind not in self.cells:
            raise unknown("cell", kind, self.cells)
        return self.cells[kind]

    @property
    def rules(self) -> tuple[str, ...]:
        """The distinct learning rules on the searched edges, in order of appearance."""
        used = (edge.candidate.rule for cell in self.cells.values() for edge in cell.edges)
        return tuple(dict.fromkeys(rule for rule in used if rule is not None))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits, equal for equal architectures: the order of a node's edges is ignored."""
        canonical = json_format.as_data(self.cells, self.fixed)
        for kind in self.cells:
            for edges in canonical[kind]["nodes"]:
                edges.sort()
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]

    def with_rule(self, rule: str, *, everywhere: bool = False) -> Genotype:
        """Return the same architecture with one rule on every searched edge.

        Skip connections retain their rules if the new one draws the signs of B, as ``fa`` and direct feedback do.

        Args:
            rule: the rule.
            everywhere: whether stem, preprocessing, auxiliary head and classifier learn by it, too; by default they
                retain their rules.

        Raises:
            InputError: an unknown rule.
        """
        fixed = dict.fromkeys(FIXED_LAYERS, rules.get(rule).name) if everywhere else self.fixed
        return self._with_candidates(lambda candidate: candidate.with_rule(rule), fixed)

    def with_shuffled_rules(self, seed: int) -> Genotype:
        """Return the same architecture with its rules reassigned at random: a permutation over the searched edges.

        Skip connections exchange rules among themselves, and so do the other operations, so each operation gets a rule
        that it may have, and the number of edges per rule stays the same. All arrangements but the given one are
        equally likely. Layers outside the searched edges retain their rules.

        Args:
            seed: equal seeds give equal genotypes, on every machine.

        Raises:
            InputError: there is no other arrangement, as when all edges have the same rule.
        """
        groups: dict[bool, list[str]] = {True: [], False: []}
        for edge in (edge for cell in self.cells.values() for edge in cell.edges):
            if edge.candidate.rule is not None:
                groups[edge.candidate.operation == SKIP].append(edge.candidate.rule)
        if all(len(set(group)) < 2 for group in groups.values()):
            raise InputError("shuffled rules: the genotype has no other arrangement of its rules")
        # The only numbers that are the same in every version of Python are those of random().
        generator = random.Random(seed)
        shuffled = self
        while shuffled == self:
            drawn = {key: iter(sorted(group, key=lambda _: generator.random())) for key, group in groups.items()}
            shuffled = self._with_candidates(partial(_with_next_rule, drawn), self.fixed)
        return shuffled

    def without_skip_rules(self) -> Genotype:
        """Return the same architecture with skip connections that learn by back-propagation."""
        return self._with_candidates(Candidate.without_skip_rule, self.fixed)

    def _with_candidates(self, change: Callable[[Candidate], Candidate], fixed: Mapping[str, str]) -> Genotype:
        def cell(old: Cell) -> Cell:
            nodes = tuple(tuple(Edge(change(e.candidate), e.source) for e in edges) for edges in old.nodes)
            return replace(old, nodes=nodes)

        return Genotype(**{kind: cell(old) for kind, old in self.cells.items()}, fixed=fixed)

    def to_json(self) -> str:
        """Write the genotype as JSON, one node per line."""
        return json_format.write(self.cells, self.fixed)

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read a genotype from JSON, the inverse of :meth:`to_json`.

        Raises:
            InputError: not JSON (line and column), or not a genotype (path of the faulty entry).
        """
        cells, fixed = json_format.read(text)
        return cls(**cells, fixed=fixed)

    @classmethod
    def from_darts(cls, text: str) -> Genotype:
        """Read the text form of DARTS, ``Genotype(normal=[('sep_conv_3x3', 0), …], normal_concat=…, …)``.

        The call may stand in a log or a Python file; ``Structure(…)`` of NAS-Bench-201's code is also read.

        Rules are read from the suffixes of the paper's code (``_u``, ``_br``, ``_fr``, ``_fa``; ``skip_connect_u``,
        ``_b``, ``_f``); an operation without a suffix is trained by ``bp``. The text is parsed, never evaluated.

        Raises:
            InputError: not such a text, or several genotypes; the message names the line and the column.
        """
        cells = text_format.read_calls(text)
        if not cells:
            raise refuse(text)
        return cls(**cells, fixed=None)

    @classmethod
    def from_nb201(cls, text: str) -> Genotype:
        """Read a NAS-Bench-201 string, ``|nor_conv_3x3@usf~0|+|none~0|skip_connect~1|+|…|``, from any text.

        An operation without a rule is trained by ``bp``.

        Raises:
            InputError: not such a string; the message names the node and the edge.
        """
        return cls(**nb201.read(text), fixed=None)

    def to_nb201(self) -> str:
        """Write the cell as a NAS-Bench-201 string, the inverse of :meth:`from_nb201`; ``bp`` is omitted.

        Raises:
            InputError: a DARTS architecture.
        """
        return nb201.write(self.cells)

    @classmethod
    def from_text(cls, text: str) -> Genotype:
        """Read a genotype in any form: JSON, the text of DARTS, or a NAS-Bench-201 string.

        The latter two may stand in other text, such as a log or a Python file.

        Raises:
            InputError: none of these forms, or several genotypes; the message names the line and the column.
        """
        cells, fixed = text_format.read(text)
        return cls(**cells, fixed=fixed)

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Read a genotype from a file; see :meth:`from_text`.

        Raises:
            InputError: no such file, or not a genotype. The message names the file.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(4 * LARGEST_TEXT + 1)
            if len(data) > 4 * LARGEST_TEXT:
                raise InputError(f"genotype {path}: expected at most {4 * LARGEST_TEXT} bytes")
            encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
            text = data.decode(encoding)
        except InputError:
            raise
        except (OSError, ValueError) as error:  # ValueError: not text, or not a path
            raise InputError(f"cannot read genotype {path}: {error}") from None
        try:
            return cls.from_text(text.replace("\r\n", "\n"))
        except InputError as error:
            raise error.at(str(path)) from None

    def save(self, path: str | Path) -> None:
        """Write the genotype into a file, as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            Path(path).write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write genotype {path}: {error.strerror or error}") from None

    def __repr__(self) -> str:
        edges = [edge for cell in self.cells.values() for edge in cell.edges]
        counts = Counter(edge.candidate.learning or "no rule" for edge in edges)
        learning = ", ".join(f"{rule} {count}" for rule, count in counts.most_common())
        return f"Genotype({self.hash}: {len(edges)} edges, {learning})"

    def _repr_html_(self) -> str | None:
        draw = Genotype.to_html
        return None if draw is None else draw(self)


def _with_next_rule(rules_left: Mapping[bool, Iterator[str]], candidate: Candidate) -> Candidate:
    """Return a candidate under the next rule for its group: skip connections, or the other operations."""
    if candidate.rule is None:
        return candidate
    return Candidate(candidate.operation, next(rules_left[candidate.operation == SKIP]))
