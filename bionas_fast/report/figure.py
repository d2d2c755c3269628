"""Picture of a genotype: its cells from left to right, edges coloured by learning rule."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Curve
from matplotlib.textpath import text_to_path

from bionas_fast.errors import unknown
from bionas_fast.report.colors import INK, MUTED, NO_RULE, PAPER, SURFACE, rule_color
from bionas_fast.report.layout import Item, Layout, cell_title, lay_out
from bionas_fast.runs.files import write_atomic
from bionas_fast.space import Edge, Genotype

FORMATS = ("svg", "png", "pdf")

#: Entries of the metadata that would make the same picture another file.
_METADATA = {
    "svg": ("Date", "Creator", "Format", "Type"),
    "png": ("Software",),
    "pdf": ("CreationDate", "Creator", "Producer"),
}

_MARGIN = 0.3
_TITLE = 0.42
_LEGEND = 0.5
_BEND, _ARROW = 0.52, 0.34  # space for the bend of a line, and for an arrow into its node
_NODE, _INPUT, _OUTPUT = 0.44, 0.95, 0.6
#: The width of the line of an edge, in points: without lead, where leads are unknown, and at twice the weight or more.
_THIN, _LINE, _THICK = 0.9, 1.8, 4.5
_KEY = 0.32
_SIZE = 8.5


def draw_figure(genotype: Genotype, path: str | Path, *, cell: str | None = None, leads: Sequence[float] = ()) -> None:
    """Draw the cells of a genotype into an SVG, PNG or PDF file, by its extension.

    Args:
        genotype: the genotype.
        path: the file.
        cell: the kind of the only cell to draw, such as ``normal``; by default all.
        leads: the width of the lines; see :func:`genotype_figure`.

    Raises:
        InputError: another extension, an unknown cell, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise unknown("picture format", suffix, FORMATS, str(path))
    write_atomic(path, render(genotype_figure(genotype, leads, cell), suffix))


def render(figure: Figure, format: str) -> bytes:
    """Render a figure as the content of an SVG, PNG or PDF file, deterministically."""
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "bionas-fast", "text.usetex": False, "pdf.fonttype": 42}
    metadata = dict.fromkeys(_METADATA[format])
    buffer = io.BytesIO()
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format=format, dpi=200 if format == "png" else 72, metadata=metadata)
    # Verdana is as wide as DejaVu Sans, which only some systems have.
    fonts = b"font-family: 'DejaVu Sans', Verdana, sans-serif"
    return re.sub(rb"font-family: [^;\"]+", fonts, buffer.getvalue()) if format == "svg" else buffer.getvalue()


def genotype_figure(genotype: Genotype, leads: Sequence[float] = (), only: str | None = None) -> Figure:
    """Draw the cells, the legend of rules and the rules of the fixed layers; one data unit is one inch.

    Args:
        genotype: the genotype.
        leads: for every edge, cell by cell, the softmax weight of its candidate over that of the next one. The more,
            the thicker its line: from no lead to twice the weight. Without them, all lines are alike.
        only: the kind of the only cell to draw; by default all.

    Raises:
        InputError: an unknown kind of cell.
    """
    widths = _line_widths(genotype, leads)
    drawn = genotype.cells if only is None else {only: genotype.cell(only)}
    layouts = {kind: lay_out(cell) for kind, cell in drawn.items()}
    edges = [edge for cell in drawn.values() for edge in cell.edges]
    label = max((_label_width(edge) for edge in edges), default=_NODE)
    columns = {kind: _columns(layout, label) for kind, layout in layouts.items()}
    width = max(max(right for _, right in c) for c in columns.values()) + _MARGIN
    heights = {kind: layout.top - layout.bottom + _TITLE + _MARGIN for kind, layout in layouts.items()}
    legend, fixed = _legend(genotype, edges)
    width = max(width, sum(_entry_width(text) for _, text in legend) + text_width(fixed, 9) + 2 * _MARGIN)
    height = sum(heights.values()) + _LEGEND + 0.1

    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    y = height - 0.1
    for kind, layout in layouts.items():
        axes.text(_MARGIN, y - _TITLE / 2, cell_title(kind), color=INK, size=11, weight="bold", va="center")
        names = genotype.cells[kind].skeleton.state_name
        _draw_cell(axes, layout, names, columns[kind], y - _TITLE - layout.top, widths[kind])
        y -= heights[kind]
    axes.text(width - _MARGIN, height - 0.1 - _TITLE / 2, genotype.hash, color=MUTED, size=9, va="center", ha="right")
    _draw_legend(axes, legend, fixed, width)
    return figure


def _line_widths(genotype: Genotype, leads: Sequence[float]) -> dict[str, list[float]]:
    """Compute the width of the line of every edge, in points, by cell."""
    left = iter(leads)
    return {
        kind: [_LINE if not leads else _THIN + (_THICK - _THIN) * min(next(left) - 1, 1) for _ in cell.edges]
        for kind, cell in genotype.cells.items()
    }


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Compute the width of a text in inches."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), False)[0] / 72


def _label_width(edge: Edge) -> float:
    # 10 % more, for SVG viewers that substitute another font.
    lines = (edge.candidate.operation, edge.candidate.learning or "")
    return 1.1 * max(text_width(line, _SIZE) for line in lines) + 0.16


def _columns(layout: Layout, label: float) -> list[tuple[float, float]]:
    """Compute the left and right border of every layer."""
    x, columns = _MARGIN, []
    for layer in range(len(layout.layers)):
        named = layer % 2 == 1 and layer < len(layout.layers) - 1
        width = label if named else _NODE
        if layer == 0:
            width = _INPUT
        if layer == len(layout.layers) - 1:
            width = _OUTPUT
        columns.append((x, x + width))
        x += width + (_ARROW if named else _BEND)
    return columns


def _draw_cell(
    axes: Axes,
    layout: Layout,
    names: Callable[[int], str],
    columns: list[tuple[float, float]],
    dy: float,
    widths: Sequence[float],
) -> None:
    def box(item: Item, text: str, fill: str, line: str) -> None:
        left, right = columns[item.layer]
        corner = (left, item.y + dy - item.height / 2)
        style = "round,pad=0,rounding_size=0.08"
        patch = FancyBboxPatch(corner, right - left, item.height, boxstyle=style, fc=fill, ec=line, lw=1, zorder=4)
        axes.add_patch(patch)
        axes.text((left + right) / 2, item.y + dy, text, color=INK, size=10, ha="center", va="center", zorder=5)

    # The routes of the edges come first.
    for route, width in zip(layout.routes, chain(widths, repeat(1.0)), strict=False):
        rule = route.edge.candidate.learning if route.edge else None
        color = rule_color(rule) if route.edge else MUTED
        points = []
        for item in route.items:
            left, right = columns[item.layer]
            y = item.y + dy
            points += [(left, y), (right, y)]
        points = points[1:-1]
        target = route.items[-1]
        points[-1] = (points[-1][0], dy + _port(target, route.items[-2]))
        _draw_line(axes, points, color, width, "--" if route.edge and rule is None else "-")
        if route.edge and route.label:
            _draw_label(axes, route.edge, route.label, columns[route.label.layer], dy)
    for state, item in enumerate(layout.states):
        number, equals, name = names(state).partition(" = ")
        box(item, f"{number}{equals}${name}$" if name else number, SURFACE, MUTED)
    box(layout.output, "$c_k$", SURFACE, MUTED)


def _port(target: Item, source: Item) -> float:
    """Compute where a line meets the left side of a box; lines are attached in their vertical order."""
    sources = sorted((item.y for item, _ in target.neighbours[-1]))
    step = min(0.13, 0.7 * target.height / max(len(sources) - 1, 1))
    return target.y + (sources.index(source.y) - (len(sources) - 1) / 2) * step


def _draw_line(axes: Axes, points: list[tuple[float, float]], color: str, width: float, style: str) -> None:
    """Draw a line through points, horizontal at each of them, with an arrowhead at its end."""
    tip_x, tip_y = points[-1]
    points = [*points[:-1], (tip_x - 0.08, tip_y)]
    vertices, codes = [points[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (x0 + x1) / 2
        vertices += [(middle, y0), (middle, y1), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    axes.add_patch(PathPatch(Curve(vertices, codes), fc="none", ec=color, lw=width, ls=style, zorder=2))
    head = 0.032 + 0.012 * width
    axes.add_patch(
        Polygon(
            [(tip_x, tip_y), (tip_x - 0.1, tip_y + head), (tip_x - 0.1, tip_y - head)], fc=color, ec="none", zorder=3
        )
    )


def _draw_label(axes: Axes, edge: Edge, item: Item, column: tuple[float, float], dy: float) -> None:
    left, right = column
    y, color = item.y + dy, rule_color(edge.candidate.learning)
    corner, style = (left, y - item.height / 2), "round,pad=0,rounding_size=0.06"
    for fill, alpha in ((PAPER, 1.0), (color, 0.14)):
        axes.add_patch(
            FancyBboxPatch(corner, right - left, item.height, boxstyle=style, fc=fill, ec="none", alpha=alpha, zorder=4)
        )
    axes.add_patch(
        FancyBboxPatch(corner, right - left, item.height, boxstyle=style, fc="none", ec=color, lw=1.2, zorder=4)
    )
    center, shift = (left + right) / 2, 0.08 if edge.candidate.learning else 0.0
    text: Any = {"ha": "center", "va": "center_baseline", "color": INK, "zorder": 5}
    axes.text(center, y + shift, edge.candidate.operation, size=_SIZE, **text)
    if edge.candidate.learning:
        axes.text(center, y - shift, edge.candidate.learning, size=_SIZE, weight="bold", **text)


def _legend(genotype: Genotype, edges: list[Edge]) -> tuple[list[tuple[str | None, str]], str]:
    """Return the entries of the legend, (rule, text), and the line about the fixed layers."""
    counts = sorted(Counter(e.candidate.learning for e in edges).items(), key=lambda pair: (pair[0] is None, -pair[1]))
    fixed = "  ·  ".join(f"{layer} {rule}" for layer, rule in genotype.fixed.items())
    return [(rule, f"{rule or NO_RULE}  ×{count}") for rule, count in counts], fixed


def _draw_legend(axes: Axes, legend: list[tuple[str | None, str]], fixed: str, width: float) -> None:
    x, y = _MARGIN, _LEGEND / 2 + 0.05
    for rule, text in legend:
        axes.plot([x, x + _KEY], [y, y], color=rule_color(rule), lw=2.4, ls="-" if rule else (0, (2, 1)))
        axes.text(x + _KEY + 0.08, y, text, color=INK, size=9, va="center_baseline")
        x += _entry_width(text)
    axes.text(width - _MARGIN, y, fixed, color=MUTED, size=9, va="center_baseline", ha="right")


def _entry_width(text: str) -> float:
    return _KEY + 0.08 + text_width(text, 9) + 0.35
