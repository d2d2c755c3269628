"""The genotype over the epochs of a search."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bionas_fast.report.charts import legend, panel_grid, style_axes
from bionas_fast.report.colors import INK, NO_RULE, PAPER, rule_color
from bionas_fast.report.figure import text_width
from bionas_fast.report.layout import cell_title
from bionas_fast.space import Cell, Genotype

#: The height of a row, and the size of the names of operations.
_ROW, _SIZE = 0.21, 7.5


def history_figure(genotypes: Sequence[Genotype]) -> Figure:
    """Draw one panel per kind of cell: the edges that the genotype had over time, in the colours of their rules.

    Args:
        genotypes: the genotype after every epoch.
    """
    kinds = list(genotypes[0].cells)
    rows = {kind: sorted({edge for genotype in genotypes for edge in _edges(genotype.cells[kind])}) for kind in kinds}
    figure, axes = panel_grid(len(kinds), 1, _ROW * max(1, *map(len, rows.values())) + 0.75)
    for kind, ax in zip(kinds, axes, strict=True):
        style_axes(ax, f"{cell_title(kind)}, over epochs")
        ax.grid(False)
        inches = ax.get_position().width * figure.get_figwidth() / len(genotypes)
        for number, edge in enumerate(rows[kind]):
            _draw_row(ax, number, [_edges(genotype.cells[kind]).get(edge) for genotype in genotypes], inches)
        ax.set(xlim=(0.5, len(genotypes) + 0.5), ylim=(len(rows[kind]) - 0.5, -0.5), yticks=range(len(rows[kind])))
        ax.set_yticklabels([f"{source} → {target}" for target, source, _ in rows[kind]])
        ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    used = dict.fromkeys(rule for kind in kinds for each in genotypes for _, rule in _edges(each.cells[kind]).values())
    order = sorted(used, key=lambda rule: rule is None)
    legend(figure, [(rule or NO_RULE, rule_color(rule), "s") for rule in order])
    return figure


def _edges(cell: Cell) -> dict[tuple[int, int, int], tuple[str, str | None]]:
    """Return operation and rule of every edge by (node, source, number), as a node may have two from one state."""
    found: dict[tuple[int, int, int], tuple[str, str | None]] = {}
    for node, edges in enumerate(cell.nodes, len(cell.skeleton.input_names)):
        for edge in edges:
            number = sum((node, edge.source) == key[:2] for key in found)
            found[node, edge.source, number] = (edge.candidate.operation, edge.candidate.learning)
    return found


def _draw_row(ax: Axes, row: int, chosen: Sequence[tuple[str, str | None] | None], inches: float) -> None:
    """Draw what an edge had in each epoch, None for an absent one; ``inches`` is the width of an epoch."""
    first = 0.5
    for candidate, epochs in groupby(chosen):
        length = len(list(epochs))
        if candidate is not None:
            operation, rule = candidate
            ax.barh(row, length, 0.8, first, color=rule_color(rule), alpha=0.45, edgecolor=PAPER, linewidth=1)
            if text_width(operation, _SIZE) < length * inches - 0.05:
                ax.text(first + length / 2, row, operation, size=_SIZE, color=INK, ha="center", va="center")
        first += length


def changes(genotypes: Sequence[Genotype]) -> list[int]:
    """Count the edges that are not those of the epoch before, for every epoch but the first."""
    counts = []
    for old, new in pairwise(genotypes):
        pairs = [(_edges(old.cells[kind]), _edges(new.cells[kind])) for kind in new.cells]
        counts.append(sum(before.get(edge) != own for before, after in pairs for edge, own in after.items()))
    return counts
