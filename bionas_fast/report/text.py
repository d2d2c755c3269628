"""Terminal drawing of a genotype: states are vertical lanes, edges branch off to the right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest

from rich.console import Console
from rich.text import Text

from bionas_fast import rules
from bionas_fast.report.colors import NO_RULE, rule_color
from bionas_fast.report.layout import cell_title
from bionas_fast.space import Cell, Edge, Genotype

_LANE = 3  # columns from one lane to the next
_GUTTER = 4
_ASCII = str.maketrans("│─├┤┼┴╰╮╯▶◀■·×…", "|-+|++'.'><#.x~")


def draw_genotype(genotype: Genotype, console: Console, *, cell: str | None = None) -> None:
    """Draw the cells, rules and hash of a genotype; two cells side by side if the console is wide enough.

    Readable without colour, because every edge names its rule. Nothing is cut off on a narrow console; a console
    without Unicode gets ASCII.

    Args:
        genotype: the genotype.
        console: the terminal.
        cell: the kind of the only cell to draw, such as ``normal``; by default all.

    Raises:
        InputError: an unknown kind of cell.
    """
    cells = genotype.cells if cell is None else {cell: genotype.cell(cell)}
    edges = [edge for own in cells.values() for edge in own.edges]
    column = max((len(edge.candidate.operation) for edge in edges), default=0)
    blocks = [[Text(cell_title(kind), "bold"), *_cell(own, column)] for kind, own in cells.items()]
    widths = [max(line.cell_len for line in block) for block in blocks]
    lines = [Text.assemble("genotype ", (genotype.hash, "bold")), Text()]
    if len(blocks) == 2 and sum(widths) + _GUTTER <= console.width:
        for left, right in zip_longest(*blocks, fillvalue=Text()):
            lines.append(Text.assemble(left, " " * (widths[0] + _GUTTER - left.cell_len), right))
        lines.append(Text())
    else:
        lines += [line for block in blocks for line in (*block, Text())]
    lines += _legend(edges, console.width)
    lines.append(Text(f"fixed: {' · '.join(f'{layer} {rule}' for layer, rule in genotype.fixed.items())}"))
    for line in lines:
        line.rstrip()
        if console.options.ascii_only:
            line.plain = line.plain.translate(_ASCII)
        console.print(line, soft_wrap=True, highlight=False)


def _cell(cell: Cell, column: int) -> list[Text]:
    """Draw the lines of one cell; ``column`` is the width of the operations."""
    # A lane ends at the last use of its state, which leaves the remaining edges easy to follow.
    remaining = Counter([*(edge.source for edge in cell.edges), *cell.concat])
    live: set[int] = set()
    inputs, name = len(cell.skeleton.input_names), cell.skeleton.state_name
    width = _LANE * (inputs + len(cell.nodes)) + 2
    right = width + column + max((len(edge.candidate.learning or "") for edge in cell.edges), default=0) + 5

    def lanes(until: int) -> Text:
        row = [" "] * (_LANE * until)
        for state in live:
            if state < until:
                row[_LANE * state] = "│"
        return Text("".join(row), "dim")

    def open_lane(state: int) -> None:
        if remaining[state]:
            live.add(state)

    def run(source: int) -> str:
        """Draw a line from a lane to the right, across the lanes between."""
        remaining[source] -= 1
        if not remaining[source]:
            live.remove(source)
        row = ["─"] * (width - _LANE * source)
        row[0] = "├" if remaining[source] else "╰"
        for state in live:
            if state > source:
                row[_LANE * (state - source)] = "┼"
        return "".join(row)

    lines = []
    for state in range(inputs):
        lines.append(Text.assemble(lanes(state), (name(state), "bold")))
        open_lane(state)
    for node, edges in enumerate(cell.nodes):
        for k, edge in enumerate(edges):
            operation, rule = edge.candidate.operation, edge.candidate.learning
            color = rule_color(rule)
            before = lanes(edge.source)
            line = Text.assemble(before, (run(edge.source), color), f" {operation:{column if rule else 0}} ")
            if rule:
                line.append(f" {rule} ", f"bold {color}")
            line.append("─" * (right - line.cell_len) + ("┤" if k else "╮"), color)
            lines.append(line)
        state = inputs + node
        line = Text.assemble(lanes(state), (name(state), "bold"))
        if edges:
            line.append(" ◀", "dim")
            line.append("─" * (right - line.cell_len) + "╯", "dim")
        lines.append(line)
        open_lane(state)
    first, *others = sorted(cell.concat)
    row = ["─"] * (width - _LANE * first)
    row[0] = "╰"
    for state in others:
        row[_LANE * (state - first)] = "┴"
    concat = ", ".join(map(name, cell.concat))
    lines.append(Text.assemble(" " * (_LANE * first), ("".join(row[:-1]) + "▶", "dim"), (" c_k", "bold")))
    lines[-1].append(f" = concat({concat})")
    return lines


def _legend(edges: Iterable[Edge], width: int) -> list[Text]:
    counts = Counter(edge.candidate.learning for edge in edges)
    name_width = max((len(rule or NO_RULE) for rule in counts), default=0)
    count_width = len(str(max(counts.values(), default=0)))
    lines = []
    for rule, count in sorted(counts.items(), key=lambda pair: (pair[0] is None, -pair[1])):
        line = Text.assemble(("■", rule_color(rule)), f" {rule or NO_RULE:{name_width}}  ×{count:<{count_width}}")
        if rule in rules.names():
            line.append(f"  {rules.get(rule).summary.partition(':')[0].rstrip('.')}", "dim")
            line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines
