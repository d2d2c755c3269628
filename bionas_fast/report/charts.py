"""Charts of runs: shares of learning rules, α over time, curves."""

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
from bionas_fast.report.colors import FAINT, INK, MUTED, NO_RULE, PAPER, SURFACE, TESTED, rule_color, series_colors
from bionas_fast.report.layout import cell_title
from bionas_fast.space import Candidate, Genotype, Space

_WIDTH = 10.8  # inches, the width of the page
_LEFT = 0.62
_LEGEND_COLUMNS = 5
#: Line styles of the first and the second kind of cell.
_LINES = ("-", (0, (3, 1.5)))
#: The title of the panel of entropies.
ENTROPY = "entropy of α, bits"
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


def prior_shares(space: Space, key: Callable[[Candidate], Any]) -> dict[Any, tuple[int, int]]:
    """Count the candidates with the same key, key → (count, all): their share of the weight before a search begins."""
    keys = [key(candidate) for candidate in space.candidates]
    return {k: (keys.count(k), len(keys)) for k in dict.fromkeys(keys)}


def shares_figure(genotype: Genotype, alphas: Mapping[str, np.ndarray], space: Space | None) -> Figure:
    """Draw one stacked bar per node: the shares of the rules by α, and on the edges of the genotype.

    Above the bars by α, one of the shares among the candidates: where equal α begin.
    """
    panels = []
    for kind in genotype.cells:
        if space is not None and kind in alphas:
            prior = prior_shares(space, lambda candidate: candidate.learning)
            by_alpha = rule_shares(alphas[kind][-1], space)
            shares = {rule: np.append(prior[rule][0] / prior[rule][1], share) for rule, share in by_alpha.items()}
            panels.append((f"{cell_title(kind)}, by α", shares))
        found = edge_shares(genotype, kind)
        panels.append(
            (f"{cell_title(kind)}, genotype", {rule: np.append(math.nan, share) for rule, share in found.items()})
        )
    order = sorted(dict.fromkeys(rule for _, shares in panels for rule in shares), key=lambda rule: rule is None)
    bars = max(len(next(iter(shares.values()))) for _, shares in panels)
    skeleton = genotype.skeleton
    names = ["candidates", *(f"node {len(skeleton.input_names) + n}" for n in range(bars - 1))]
    figure, axes = panel_grid(len(panels), len(panels), 0.36 * bars + 0.75, left=0.85)
    for ax, (title, shares) in zip(axes, panels, strict=True):
        style_axes(ax, title)
        left = np.zeros(len(next(iter(shares.values()))))
        for rule in (rule for rule in order if rule in shares):
            share = shares[rule]
            ax.barh(range(len(share)), share, 0.68, left, color=rule_color(rule), edgecolor=PAPER, linewidth=1)
            left += share
        top = -0.5 if alphas else 0.5
        ax.set(xlim=(0, 1), ylim=(bars - 0.5, top), yticks=range(len(left)), xticks=(0.25, 0.5, 0.75))
        ax.set_yticklabels(names[: len(left)] if ax is axes[0] else [""] * len(left))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(False)
        ax.spines["left"].set_visible(False)
    legend(figure, [(rule or NO_RULE, rule_color(rule), "s") for rule in order])
    return figure


def network_figure(shares: Mapping[str, float]) -> Figure:
    """Draw one stacked bar: the share of the weights of a network that learn by each rule, in [0, 1]."""
    figure, (ax,) = panel_grid(1, 1, 1.05)
    style_axes(ax, "weights of the network by learning rule")
    left = 0.0
    for rule, share in shares.items():
        ax.barh(0, share, 0.6, left, color=rule_color(rule), edgecolor=PAPER, linewidth=1)
        left += share
    ax.set(xlim=(0, 1), ylim=(-0.5, 0.5), yticks=(), xticks=(0, 0.25, 0.5, 0.75, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    legend(figure, [(f"{rule} {100 * share:.1f} %", rule_color(rule), "s") for rule, share in shares.items()])
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
    prior = prior_shares(space, key)
    weights = [w.mean(axis=-1).max() for groups in series.values() for w in groups.values()]
    top = max(*weights, *(count / number for count, number in prior.values()))
    columns = min(len(keys), 5) if len(keys) != 8 else 4
    styles = dict(zip(series, _LINES, strict=False))
    figure, axes = panel_grid(len(keys), columns, 1.55)
    for i, (ax, k) in enumerate(zip(axes, keys, strict=True)):
        title, color = title_and_color(k)
        count, number = prior[k]
        style_axes(ax, f"{title} ({count} of {number})")
        ax.axhline(count / number, color=MUTED, lw=1, ls=":")
        for kind, groups in series.items():
            weight = groups[k].mean(axis=-1)
            mark = "o" if len(weight) == 1 else None
            ax.plot(range(len(weight)), weight, color=color, lw=1.8, ls=styles[kind], marker=mark, ms=4)
        ax.set(ylim=(0, 1.1 * top), xlim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.tick_params(labelleft=i % columns == 0)
    entries = [(cell_title(kind), MUTED, style) for kind, style in styles.items()]
    legend(figure, [*entries, ("share among the candidates, where equal α begin", MUTED, ":")])
    return figure


def curves_figure(metrics: Sequence[Mapping[str, Any]], candidates: int | None = None) -> Figure | None:
    """Draw loss, accuracy, entropy of α and seconds per epoch, where recorded; None if nothing was recorded.

    Args:
        metrics: one entry per epoch.
        candidates: number of candidates of an edge, which sets the largest entropy.
    """
    epochs = [_number(row.get("epoch", i)) for i, row in enumerate(metrics, 1)]

    def series(key: str) -> list[float]:
        return [_number(row.get(key)) for row in metrics]

    panels = [(name, {s: (series(f"{s}_{name}"), color) for s, color in _SERIES}) for name in ("loss", "accuracy")]
    bits = [nats / math.log(2) for nats in series("alpha_entropy")]
    panels += [(ENTROPY, {"": (bits, INK)}), ("seconds", {"": (series("seconds"), INK)})]
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
            # A line from each measured epoch to the next one.
            points = [point for point in zip(epochs, values, strict=True) if math.isfinite(point[1])]
            ax.plot(*zip(*points, strict=True), color=color, lw=1.8, marker="o" if len(points) < 4 else None, ms=4)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        if title == "seconds":
            ax.set_ylim(0, None)
        if title == ENTROPY:
            full_entropy(ax, candidates)
    shown = {name for _, lines in panels for name in lines}
    legend(figure, [(name, color, "-") for name, color in _SERIES if name in shown])
    return figure


def full_entropy(ax: Axes, candidates: int | None) -> None:
    """Show entropies in bits from 0, all edges decided, to their maximum, where a line is: equal α."""
    ax.set_ylim(0, None if candidates is None else 1.05 * math.log2(candidates))
    if candidates is not None:
        ax.axhline(math.log2(candidates), color=MUTED, lw=1, ls=":")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Real) else math.nan


def panel_grid(
    n: int, columns: int, height: float, *, left: float = _LEFT, entries: int = 1
) -> tuple[Figure, list[Axes]]:
    """Lay out panels in rows of equal size, with room for a legend below.

    Args:
        n: number of panels.
        columns: number of panels in a row.
        height: height of a row, in inches.
        left: space for the labels at the left, in inches.
        entries: number of names in a legend of :func:`series_legend`.
    """
    below = 0.3 + 0.2 * (-(-entries // _LEGEND_COLUMNS) - 1)
    rows = -(-n // columns)
    total = rows * height + below
    figure = Figure(figsize=(_WIDTH, total), facecolor=PAPER)
    gap = 0.36
    width = (_WIDTH - left - 0.2 - gap * (columns - 1)) / columns
    axes = []
    for i in range(n):
        row, column = divmod(i, columns)
        x, y = left + column * (width + gap), total - (row + 1) * height + 0.28
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


def legend(figure: Figure, entries: Iterable[tuple[str, str, Any]], columns: int | None = None) -> None:
    """Draw a legend below the panels: each name with a square (``"s"``) or a line style; by default on one line."""
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
        columns = len(handles) if columns is None else min(columns, len(handles))
        figure.legend(handles=handles, ncols=columns, frameon=False, fontsize=8.5, labelcolor=INK, **position)


def series_legend(figure: Figure, names: Iterable[str], *others: tuple[str, str, Any]) -> None:
    """Draw a legend of several networks or runs in their colours, and of ``others``, as of :func:`legend`."""
    entries = [(name, color, "-") for name, color in series_colors(names).items()]
    legend(figure, [*entries, *others], _LEGEND_COLUMNS)
