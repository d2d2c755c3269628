"""Figures of an analysis: gradients, alignment and weights of the layers of one or several networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bionas_fast.analysis.weights import WeightDistribution
from bionas_fast.report.charts import panel_grid, style_axes
from bionas_fast.report.colors import MUTED

#: Colours that also people who are colour-blind tell apart (Okabe and Ito 2008).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Rows = Sequence[Mapping[str, Any]]
_GRADIENTS = (
    ("variance", "variance of the gradient", True),
    ("noise_scale", "noise scale, tr Cov(g) / ‖mean g‖²", True),
    ("cosine", "cosine to the true gradient", False),
)
_ALIGNMENT = (("angle", "angle between B and W, °", False), ("norm_ratio", "‖B‖ / ‖W‖", False))


def gradients_figure(rows: Mapping[str, Rows]) -> Figure:
    """Draw variance, noise scale and cosine: means over the layers by epoch, or by layer if there is one epoch.

    Args:
        rows: the rows of :func:`record_layers` by network.
    """
    return _figure(rows, _GRADIENTS)


def alignment_figure(rows: Mapping[str, Rows]) -> Figure:
    """Draw angle and norm ratio of the feedback; arguments as of :func:`gradients_figure`."""
    return _figure(rows, _ALIGNMENT)


def weights_figure(weights: Mapping[str, Sequence[WeightDistribution]]) -> Figure:
    """Draw distributions of weights, those of a name in one panel, with standard deviation and excess kurtosis.

    Args:
        weights: distributions, such as those by rule, of each network.
    """
    rules = list(dict.fromkeys(own.name for found in weights.values() for own in found))
    figure, axes = panel_grid(len(rules), min(3, len(rules)), 2.6)
    for ax, rule in zip(axes, rules, strict=True):
        style_axes(ax, f"{rule}: density of the weights")
        lines = []
        for (name, found), color in zip(weights.items(), _colors(weights), strict=True):
            for own in (own for own in found if own.name == rule):
                edges = own.edges.numpy()
                ax.stairs(own.density.numpy(), edges, color=color, lw=1.2)
                lines.append((f"{name}: σ {own.sigma:.3g}, kurtosis {own.kurtosis:.2f}", color))
        for position, (text, color) in enumerate(lines):
            ax.text(
                0.98, 0.95 - 0.1 * position, text, transform=ax.transAxes, ha="right", va="top", size=7.5, color=color
            )
    _legend(figure, weights)
    return figure


def _figure(rows: Mapping[str, Rows], quantities: Sequence[tuple[str, str, bool]]) -> Figure:
    figure, axes = panel_grid(len(quantities), len(quantities), 2.8)
    over_time = any(len({row["epoch"] for row in found}) > 1 for found in rows.values())
    draw = _over_time if over_time else _over_layers
    for ax, (key, title, logarithmic) in zip(axes, quantities, strict=True):
        style_axes(ax, f"{title}, by {'epoch' if over_time else 'layer'}")
        for found, color in zip(rows.values(), _colors(rows), strict=True):
            draw(ax, [row for row in found if row[key] is not None], key, color, _mean(logarithmic))
        if logarithmic:
            ax.set_yscale("log")
    _legend(figure, rows)
    return figure


def _mean(logarithmic: bool) -> Callable[[np.ndarray], float]:
    """Return the geometric or the arithmetic mean."""
    if logarithmic:
        return lambda values: float(np.exp(np.log(values[values > 0]).mean())) if (values > 0).any() else float("nan")
    return lambda values: float(values.mean())


def _over_time(ax: Axes, rows: Rows, key: str, color: str, mean: Callable[[np.ndarray], float]) -> None:
    epochs = sorted({row["epoch"] for row in rows})
    means = [mean(np.array([row[key] for row in rows if row["epoch"] == epoch])) for epoch in epochs]
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [(row["epoch"], row[key]) for row in rows if row["layer"] == layer]
        ax.plot(*zip(*own, strict=True), color=color, lw=0.5, alpha=0.25)
    ax.plot(epochs, means, color=color, lw=1.8, marker="o", ms=3)


def _over_layers(ax: Axes, rows: Rows, key: str, color: str, _: Callable[[np.ndarray], float]) -> None:
    ax.plot(range(len(rows)), [row[key] for row in rows], color=color, lw=1.2, marker="o", ms=3)


def _colors(networks: Mapping[str, Any]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(networks))]


def _legend(figure: Figure, networks: Mapping[str, Any]) -> None:
    lines = [Line2D([], [], color=color) for color in _colors(networks)]
    figure.legend(lines, list(networks), loc="lower center", ncol=6, frameon=False, fontsize=8, labelcolor=MUTED)
