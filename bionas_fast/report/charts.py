"""Charts of the report of a search: shares of learning rules, α over time, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bionas_fast.errors import InputError
from bionas_fast.report.colors import FAINT, INK, MUTED, NO_RULE, PAPER, SURFACE, TESTED, rule_color
from bionas_fast.report.layout import cell_title
from bionas_fast.space import Candidate, Genotype, Space

_WIDTH = 10.8  # inches, the width of the page
_LEFT = 0.62
#: Line styles of the first and the second kind of cell.
_LINES = ("-", (0, (3, 1.5)))
_SERIES = (("train", MUTED), ("valid", INK), ("test", TESTED))


def softmax(alpha: np.ndarray) -> np.ndarray:
    """Compute the softmax weights of the candidates, [..., candidates]."""
    shifted = np.exp(alpha - alpha.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def grouped(weights: np.ndarray, space: Space, key: Callable[[Candidate], Any]) -> dict[Any, np.ndarray]:
    """Sum weights [..., candidates] over the candidates with the same key; keys in order of first appearance."""
    keys = [key(candidate) for candidate in space.candidates]
    members = {k: [i for i, other in enumerate(keys) if other == k] for k in dict.fromkeys(keys)}
    return {k: weights[..., indices].sum(axis=-1) for k, indices in members.items()}


def check_alphas(alphas: Mapping[str, np.ndarray], space: Space) -> None:
    """Raise InputError unless every array is [epochs + 1, edges, candidates] of the space, and finite."""
    expected = [len(space.edges), len(space.candidates)]
    for kind, alpha in alphas.items():
        if alpha.ndim != 3 or list(alpha.shape[1:]) != expected or not len(alpha):
            edges, candidates = expected
            raise InputError(
                f"alphas[{kind!r}] has shape {list(alpha.shape)}; "
                f"space {space.name!r} has [epochs + 1, {edges}, {candidates}]"
            )
        if not np.isfinite(alpha).all():
            raise InputError(f"alphas[{kind!r}] holds values that are not finite")


def rule_shares(alpha: np.ndarray, space: Space) -> dict[str | None, np.ndarray]:
    """Compute the share of each rule in the softmax weight at every node, rule → [nodes].

    The key None collects the candidates without weights.

    Args:
        alpha: [edges, candidates] before the softmax.
    """
    node = np.array([n for n, _ in space.edges])
    by_rule = grouped(softmax(alpha), space, lambda candidate: candidate.learning)
    return {rule: np.array([w[node == n].mean() for n in range(space.nodes)]) for rule, w in by_rule.items()}


def edge_shares(genotype: Genotype, kind: str) -> dict[str | None, np.ndarray]:
    """Compute the share of each rule among the edges into every node of a cell, rule → [nodes]."""
    nodes = [[edge.candidate.learning for edge in edges] for edges in genotype.cells[kind].nodes]
    used = dict.fromkeys(rule for node in nodes for rule in node)
    if not used:
        return {None: np.zeros(len(nodes))}
    return {rule: np.array([node.count(rule) / max(len(node), 1) for node in nodes]) for rule in used}


def shares_figure(genotype: Genotype, alphas: Mapping[str, np.ndarray], space: Space) -> Figure:
    """Draw one stacked bar per node: the shares of the rules by α, and on the edges of the genotype."""
    panels = []
    for kind in genotype.cells:
        if kind in alphas:
            panels.append((f"{cell_title(kind)}, by α", rule_shares(alphas[kind][-1], space)))
        panels.append((f"{cell_title(kind)}, genotype", edge_shares(genotype, kind)))
    order = sorted(dict.fromkeys(rule for _, shares in panels for rule in shares), key=lambda rule: rule is None)
    nodes = max(len(next(iter(shares.values()))) for _, shares in panels)
    skeleton = genotype.skeleton
    names = [f"node {skeleton.state_name(len(skeleton.input_names) + n)}" for n in range(nodes)]
    figure, axes = panel_grid(len(panels), len(panels), 0.36 * nodes + 0.75)
    for ax, (title, shares) in zip(axes, panels, strict=True):
        style_axes(ax, title)
        left = np.zeros(len(next(iter(shares.values()))))
        for rule in (rule for rule in order if rule in shares):
            share = shares[rule]
            ax.barh(range(len(share)), share, 0.68, left, color=rule_color(rule), edgecolor=PAPER, linewidth=1)
            left += share
        ax.set(xlim=(0, 1), ylim=(nodes - 0.5, -0.5), yticks=range(len(left)), xticks=(0.25, 0.5, 0.75))
        ax.set_yticklabels(names[: len(left)] if ax is axes[0] else [""] * len(left))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(False)
        ax.spines["left"].set_visible(False)
    _legend(figure, [(rule or NO_RULE, rule_color(rule), "s") for rule in order])
    return figure


def rules_figure(alphas: Mapping[str, np.ndarray], space: Space) -> Figure:
    """Draw one panel per rule: its share of the softmax weight in each cell over time."""

    def title_and_color(rule: str | None) -> tuple[str, str]:
        return rule or NO_RULE, rule_color(rule)

    return _over_time(alphas, space, lambda candidate: candidate.learning, title_and_color)


def operations_figure(alphas: Mapping[str, np.ndarray], space: Space) -> Figure:
    """Draw one panel per operation: its share of the softmax weight in each cell over time."""
    return _over_time(alphas, space, lambda candidate: candidate.operation, lambda name: (name, INK))


def _over_time(
    alphas: Mapping[str, np.ndarray],
    space: Space,
    key: Callable[[Candidate], Any],
    title_and_color: Callable[[Any], tuple[str, str]],
) -> Figure:
    series = {kind: grouped(softmax(alpha), space, key) for kind, alpha in alphas.items()}
    keys = sorted(next(iter(series.values())), key=lambda k: k is None)
    top = max(w.mean(axis=-1).max() for groups in series.values() for w in groups.values())
    columns = min(len(keys), 5) if len(keys) != 8 else 4
    styles = dict(zip(series, _LINES, strict=False))
    figure, axes = panel_grid(len(keys), columns, 1.55)
    for i, (ax, k) in enumerate(zip(axes, keys, strict=True)):
        title, color = title_and_color(k)
        style_axes(ax, title)
        for kind, groups in series.items():
            weight = groups[k].mean(axis=-1)
            mark = "o" if len(weight) == 1 else None
            ax.plot(range(len(weight)), weight, color=color, lw=1.8, ls=styles[kind], marker=mark, ms=4)
        ax.set(ylim=(0, 1.1 * top), xlim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.tick_params(labelleft=i % columns == 0)
    _legend(figure, [(cell_title(kind), MUTED, style) for kind, style in styles.items()])
    return figure


def curves_figure(metrics: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw loss, accuracy, entropy of α and seconds per epoch, where recorded; None if nothing was recorded."""
    epochs = [_number(row.get("epoch", i)) for i, row in enumerate(metrics, 1)]

    def series(key: str) -> list[float]:
        return [_number(row.get(key)) for row in metrics]

    panels = [(name, {s: (series(f"{s}_{name}"), color) for s, color in _SERIES}) for name in ("loss", "accuracy")]
    panels += [("entropy of α", {"": (series("alpha_entropy"), INK)}), ("seconds", {"": (series("seconds"), INK)})]
    panels = [
        (title, {name: s for name, s in lines.items() if any(map(math.isfinite, s[0]))}) for title, lines in panels
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    figure, axes = panel_grid(len(panels), len(panels), 2.2)
    for ax, (title, lines) in zip(axes, panels, strict=True):
        style_axes(ax, title)
        for values, color in lines.values():
            ax.plot(epochs, values, color=color, lw=1.8, marker="o" if len(values) < 4 else None, ms=4)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        if title == "seconds":
            ax.set_ylim(0, None)
    shown = {name for _, lines in panels for name in lines}
    _legend(figure, [(name, color, "-") for name, color in _SERIES if name in shown])
    return figure


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Real) else math.nan


def panel_grid(n: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Lay out ``n`` panels in rows of equal size, with room for a legend below; ``height`` of a row in inches."""
    rows = -(-n // columns)
    total = rows * height + 0.3
    figure = Figure(figsize=(_WIDTH, total), facecolor=PAPER)
    gap = 0.36
    width = (_WIDTH - _LEFT - 0.2 - gap * (columns - 1)) / columns
    axes = []
    for i in range(n):
        row, column = divmod(i, columns)
        x, y = _LEFT + column * (width + gap), total - (row + 1) * height + 0.28
        axes.append(figure.add_axes((x / _WIDTH, y / total, width / _WIDTH, (height - 0.65) / total)))
    return figure, axes


def style_axes(ax: Axes, title: str) -> None:
    """Give the axes of a panel the look of the page."""
    ax.set_title(title, loc="left", color=INK, size=9.5, weight="bold", pad=6)
    ax.set_facecolor(PAPER)
    ax.grid(axis="y", color=SURFACE, lw=1)
    ax.set_axisbelow(True)
    ax.tick_params(colors=MUTED, labelsize=8, length=0, pad=5)
    for side, spine in ax.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=FAINT)


def _legend(figure: Figure, entries: Iterable[tuple[str, str, Any]]) -> None:
    """Draw a one-line legend below the panels: each name with a square (``"s"``) or a line style."""
    handles = []
    for name, color, style in entries:
        appearance: dict[str, Any] = (
            {"marker": "s", "markersize": 8, "ls": "none"} if style == "s" else {"ls": style, "lw": 1.8}
        )
        handles.append(Line2D([], [], color=color, label=name, **appearance))
    if handles:
        position: Any = {
            "loc": "lower left",
            "bbox_to_anchor": (_LEFT / _WIDTH, 0),
            "borderaxespad": 0,
            "borderpad": 0.1,
        }
        figure.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=8.5, labelcolor=INK, **position)
