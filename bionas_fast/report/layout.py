"""Layered layout of a cell (Sugiyama, Tagawa & Toda 1981), from left to right.

Layer 0 holds the cell's inputs, layers 2i+1 the labels of the edges into node i, layers 2i+2 node i, the last one
the output. An edge that spans several layers reserves space in each of them, so nothing overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bionas_fast.space import Cell, Edge

_SWEEPS = 24


def cell_title(kind: str) -> str:
    """Return the title of a kind of cell: ``normal cell``, or ``cell`` if there is only one."""
    return kind if kind == "cell" else f"{kind} cell"


@dataclass(eq=False)
class Item:
    """An item of a layer: a state, the label of an edge, or a line passing through.

    Attributes:
        layer: its column.
        height: its height in inches.
        y: the vertical position of its centre in inches, set by the layout.
    """

    layer: int
    height: float
    y: float = 0.0

    def __post_init__(self) -> None:
        self.neighbours: dict[int, list[tuple[Item, float]]] = {-1: [], 1: []}


@dataclass(frozen=True)
class Route:
    """A line through ``label`` from a state to a node or, without ``edge``, to the output."""

    items: tuple[Item, ...]
    edge: Edge | None = None
    label: Item | None = None


@dataclass(frozen=True)
class Layout:
    """The layout of a cell; ``states`` are numbered as in the genotype."""

    states: tuple[Item, ...]
    output: Item
    routes: tuple[Route, ...]
    layers: tuple[tuple[Item, ...], ...]

    @property
    def bottom(self) -> float:
        return min(item.y - item.height / 2 for layer in self.layers for item in layer)

    @property
    def top(self) -> float:
        return max(item.y + item.height / 2 for layer in self.layers for item in layer)


def lay_out(cell: Cell, *, box: float = 0.44, label: float = 0.36, line: float = 0.0, gap: float = 0.14) -> Layout:
    """Compute the layout of a cell with few crossings and nearly straight lines.

    Args:
        box, label, line: the height of a state's box, an edge's label and a passing line, in inches.
        gap: the minimum distance between two neighbours of a layer, in inches.
    """
    last = 2 * len(cell.nodes) + 1
    layers: list[list[Item]] = [[] for _ in range(last + 1)]

    def add(layer: int, height: float) -> Item:
        item = Item(layer, height)
        layers[layer].append(item)
        return item

    inputs = len(cell.skeleton.input_names)
    states = [add(max(0, 2 * (state - inputs) + 2), box) for state in range(inputs + len(cell.nodes))]
    output = add(last, box)

    def route(source: Item, target: Item, edge: Edge | None) -> Route:
        passed = [add(layer, line) for layer in range(source.layer + 1, target.layer - bool(edge))]
        named = add(target.layer - 1, label) if edge else None
        return Route((source, *passed, *([named] if named else []), target), edge, named)

    routes = [route(states[e.source], states[inputs + i], e) for i, edges in enumerate(cell.nodes) for e in edges]
    routes += [route(states[state], output, None) for state in cell.concat]
    for r in routes:
        for left, right in pairwise(r.items):
            # Long lines are kept straight before short ones (Gansner et al. 1993).
            passing = (left.height, right.height).count(line)
            weight = (1.0, 2.0, 8.0)[passing]
            left.neighbours[1].append((right, weight))
            right.neighbours[-1].append((left, weight))
    _order(layers)
    _level(layers, gap)
    _straighten(layers, routes, gap)
    if states[0].y < states[inputs - 1].y:  # c_{k-2} on top, as in DARTS
        for layer in layers:
            layer.reverse()
            for item in layer:
                item.y = -item.y
    return Layout(tuple(states), output, tuple(routes), tuple(map(tuple, layers)))


def _order(layers: list[list[Item]]) -> None:
    """Order each layer to reduce crossings: barycentre sweeps in both directions, then swaps of neighbours."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(_SWEEPS):
        sides = (-1,) if sweep % 2 == 0 else (1,)
        for layer in layers if sides == (-1,) else reversed(layers):
            _rank(layers)
            means = {id(item): _mean(item, sides) for item in layer}
            layer.sort(key=lambda item: means[id(item)])
        crossings = _crossings(layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    layers[:] = best
    improved = True
    while improved:
        improved = False
        for layer in layers:
            for k in range(len(layer) - 1):
                layer[k : k + 2] = layer[k + 1], layer[k]
                crossings = _crossings(layers)
                if crossings < fewest:
                    improved, fewest = True, crossings
                else:
                    layer[k : k + 2] = layer[k + 1], layer[k]


def _rank(layers: list[list[Item]]) -> None:
    for layer in layers:
        for rank, item in enumerate(layer):
            item.y = rank - (len(layer) - 1) / 2


def _crossings(layers: list[list[Item]]) -> int:
    _rank(layers)
    count = 0
    for layer in layers:
        ends = [(item.y, other.y) for item in layer for other, _ in item.neighbours[1]]
        count += sum((a - c) * (b - d) < 0 for k, (a, b) in enumerate(ends) for c, d in ends[:k])
    return count


def _mean(item: Item, sides: Sequence[int]) -> float:
    pulls = [pull for side in sides for pull in item.neighbours[side]]
    return sum(other.y * weight for other, weight in pulls) / sum(w for _, w in pulls) if pulls else item.y


def _level(layers: list[list[Item]], gap: float) -> None:
    """Set the vertical positions: short lines, minimum gaps between neighbours."""
    _rank(layers)
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            if not layer:  # before a node without edges
                continue
            offsets = [0.0]
            for lower, upper in pairwise(layer):
                offsets.append(offsets[-1] + _distance(lower, upper, gap))
            targets = [_mean(item, (-1, 1)) - offset for item, offset in zip(layer, offsets, strict=True)]
            weights = [sum(w for side in (-1, 1) for _, w in item.neighbours[side]) or 1.0 for item in layer]
            for item, y, offset in zip(layer, _isotonic(targets, weights), offsets, strict=True):
                item.y = y + offset


def _straighten(layers: list[list[Item]], routes: Sequence[Route], gap: float) -> None:
    """Straighten long lines: give the longest possible runs of consecutive items the same vertical position."""

    def free(item: Item) -> tuple[float, float]:
        layer = layers[item.layer]
        k = layer.index(item)
        low = layer[k - 1].y + _distance(layer[k - 1], item, gap) if k else -math.inf
        high = layer[k + 1].y - _distance(item, layer[k + 1], gap) if k + 1 < len(layer) else math.inf
        return low, high

    def flush(run: list[Item], low: float, high: float) -> None:
        y = min(max(sum(item.y for item in run) / len(run), low), high)
        for item in run:
            item.y = y

    for route in sorted(routes, key=lambda route: -len(route.items)):
        run: list[Item] = []
        low, high = -math.inf, math.inf
        for item in route.items[1:-1]:
            least, most = free(item)
            if run and max(low, least) > min(high, most):
                flush(run, low, high)
                run = []
                low, high = -math.inf, math.inf
            run = [*run, item]
            low, high = max(low, least), min(high, most)
        if run:
            flush(run, low, high)


def _distance(lower: Item, upper: Item, gap: float) -> float:
    return (lower.height + upper.height) / 2 + gap


def _isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Find the nearest non-decreasing sequence in weighted least squares, by pooling adjacent violators."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        count = 1
        while pools and pools[-1][0] > value:
            v, w, n = pools.pop()
            value = (v * w + value * weight) / (w + weight)
            weight += w
            count += n
        pools.append((value, weight, count))
    return [value for value, _, count in pools for _ in range(count)]
