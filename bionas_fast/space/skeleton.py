"""Skeletons: the wiring of cells, and the sequence of cells in a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Kind of the fixed residual block that halves the size, in the sequence of a network's cells.
RESIDUAL = "residual"
#: The kinds that halve the size and double the channels.
REDUCTIONS = ("reduce", RESIDUAL)


@dataclass(frozen=True)
class Skeleton:
    """The part of a search space that does not depend on its candidates.

    A cell's states are its inputs, then its nodes, numbered from 0; every node sums edges from states before it.

    Attributes:
        kinds: the kinds of searched cells, each with separate architecture parameters.
        input_names: names of the cell's inputs, the older first.
        edges_per_node: number of edges that each node of a genotype keeps: the strongest ones, each with its best
            candidate other than ``none``. None: every edge takes its best candidate and is removed if that is ``none``.
        joined: whether the output of a cell is the concatenation of its nodes or the last node.
        preprocessed: whether a cell first maps its inputs to its own channels and size.
        stem: channels of the stem, in multiples of the first cell's.
        final_norm: whether BN and ReLU precede the global pooling.
        published: channels and cells of the published evaluation on CIFAR-10.
        sequence: the kinds of the cells of a network, from its setting ``cells``; :data:`RESIDUAL` among them.
    """

    kinds: tuple[str, ...]
    input_names: tuple[str, ...]
    edges_per_node: int | None
    joined: bool
    preprocessed: bool
    stem: int
    final_norm: bool
    published: tuple[int, int]
    sequence: Callable[[int], tuple[str, ...]]

    def output(self, nodes: int) -> tuple[int, ...]:
        """Return the states that form the output of a cell with ``nodes`` nodes."""
        last = len(self.input_names) + nodes
        return tuple(range(len(self.input_names) if self.joined else last - 1, last))

    def state_name(self, state: int) -> str:
        """Return the name of a state in drawings: its number, as in the JSON, and what an input is: ``0 = c_{k-2}``."""
        return f"{state} = {self.input_names[state]}" if state < len(self.input_names) else str(state)


def _thirds(cells: int) -> tuple[str, ...]:
    return tuple("reduce" if i in (cells // 3, 2 * cells // 3) else "normal" for i in range(cells))


def _stages(cells: int) -> tuple[str, ...]:
    stage = ("cell",) * cells
    return (*stage, RESIDUAL, *stage, RESIDUAL, *stage)


#: Liu et al. 2019: L cells, each with the outputs of the two before it as inputs; reductions at ⌊L/3⌋ and ⌊2L/3⌋.
DARTS = Skeleton(
    kinds=("normal", "reduce"),
    input_names=("c_{k-2}", "c_{k-1}"),
    edges_per_node=2,
    joined=True,
    preprocessed=True,
    stem=3,
    final_norm=False,
    published=(36, 20),
    sequence=_thirds,
)

#: Dong & Yang 2020 (NAS-Bench-201): three stages of N cells, with residual blocks between them. The input is node 0.
NB201 = Skeleton(
    kinds=("cell",),
    input_names=("c_{k-1}",),
    edges_per_node=None,
    joined=False,
    preprocessed=False,
    stem=1,
    final_norm=True,
    published=(16, 5),
    sequence=_stages,
)

SKELETONS = (DARTS, NB201)
