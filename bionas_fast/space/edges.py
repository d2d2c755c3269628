"""Edges and cells of a genotype."""

from __future__ import annotations

from dataclasses import dataclass

from bionas_fast.errors import InputError
from bionas_fast.space.candidates import NONE, Candidate
from bionas_fast.space.skeleton import DARTS, Skeleton


@dataclass(frozen=True)
class Edge:
    """One edge of a cell: a candidate applied to a source state."""

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
    """A discrete cell: the edges into each node, and the nodes whose concatenation is the output.

    Raises:
        InputError: a source that is not before its node, ``none`` on an edge, a concatenation of states that are not
            nodes; in a DARTS cell, a node without edges; in a NAS-Bench-201 cell, two edges between the same states
            or an output other than the last node. The message names the place.
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
                    raise InputError(f"nodes[{i}][{k}]: 'none' cannot occur in a genotype; omit the edge")
        if not self.concat:
            raise InputError("concat: the output needs at least one node")
        for state in self.concat:
            if not inputs <= state < inputs + len(self.nodes):
                raise InputError(
                    f"concat: state {state} is not a node; nodes are {inputs} to {inputs + len(self.nodes) - 1}"
                )
        if len(set(self.concat)) != len(self.concat):
            raise InputError(f"concat: a state occurs twice in {list(self.concat)}")
        output = self.skeleton.output(len(self.nodes))
        if not self.skeleton.joined and self.concat != output:
            raise InputError(f"concat: the output is the last node, {list(output)}; got {list(self.concat)}")

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, node by node."""
        return tuple(edge for edges in self.nodes for edge in edges)
