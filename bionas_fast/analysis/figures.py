"""Figures of weights, and of what searches found; those of layers are in :mod:`bionas_fast.report.layers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bionas_fast.analysis.weights import WeightDistribution
from bionas_fast.report.charts import ENTROPY, legend, panel_grid, series_legend, style_axes
from bionas_fast.report.colors import NO_RULE, PAPER, rule_color, series_colors
from bionas_fast.report.layout import cell_title


def weights_figure(weights: Mapping[str, Sequence[WeightDistribution]]) -> Figure:
    """Draw distributions of weights, those of a name in one panel, with standard deviation and excess kurtosis
    in the colours of the legend.

    Args:
        weights: distributions, such as those by rule, of each network.
    """
    rules = list(dict.fromkeys(own.name for found in weights.values() for own in found))
    figure, axes = panel_grid(len(rules), min(3, len(rules)), 2.6, entries=len(weights))
    for ax, rule in zip(axes, rules, strict=True):
        style_axes(ax, f"{rule}: density of the weights")
        lines = []
        for name, color in series_colors(weights).items():
            for own in (own for own in weights[name] if own.name == rule):
                edges = own.edges.numpy()
                ax.stairs(own.density.numpy(), edges, color=color, lw=1.2)
                lines.append((f"σ {own.sigma:.3g}, kurtosis {own.kurtosis:.2f}", color))
        ax.set_ylim(top=(1.05 + 0.11 * len(lines)) * ax.dataLim.ymax)  # room for the lines above the curves
        for position, (text, color) in enumerate(lines):
            ax.text(
                0.98, 0.97 - 0.09 * position, text, transform=ax.transAxes, ha="right", va="top", size=7, color=color
            )
    series_legend(figure, weights)
    return figure


def composition_figure(rows: Sequence[Mapping[str, Any]], key: Literal["operation", "rule"]) -> Figure:
    """Draw one stacked bar per node: the shares of the operations or rules among its edges, one panel per kind of cell.

    Args:
        rows: the rows of :func:`bionas_fast.analysis.composition`.
        key: ``operation`` or ``rule``.
    """
    kinds = list(dict.fromkeys(row["cell"] for row in rows))
    values = sorted({row[key] for row in rows}, key=lambda value: (value is None, value))
    colors = series_colors(values) if key == "operation" else {rule: rule_color(rule) for rule in values}
    nodes = 1 + max(row["node"] for row in rows)
    figure, axes = panel_grid(len(kinds), len(kinds), 0.3 * nodes + 0.85, left=0.85, entries=len(values))
    for number, (ax, kind) in enumerate(zip(axes, kinds, strict=True)):
        style_axes(ax, f"{cell_title(kind)}: {key}s by node")
        left = np.zeros(nodes)
        for value, color in colors.items():
            share = np.zeros(nodes)
            for row in rows:
                if (row["cell"], row[key]) == (kind, value):
                    share[row["node"]] += row["share"]
            ax.barh(range(nodes), share, 0.68, left, color=color, edgecolor=PAPER, linewidth=1)
            left += share
        ax.set(xlim=(0, 1), ylim=(nodes - 0.5, -0.5), yticks=range(nodes), xticks=(0, 0.25, 0.5, 0.75))
        ax.set_yticklabels([f"node {node}" if number == 0 else "" for node in range(nodes)])
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(False)
    legend(figure, [(value or NO_RULE, color, "s") for value, color in colors.items()], 5)
    return figure


def entropy_figure(entropies: Mapping[str, np.ndarray]) -> Figure:
    """Draw the entropy of α in bits after every epoch.

    Args:
        entropies: [epochs + 1] of each search.
    """
    figure, (ax,) = panel_grid(1, 1, 2.6, entries=len(entropies))
    style_axes(ax, f"{ENTROPY}, by epoch")
    for name, color in series_colors(entropies).items():
        own = entropies[name]
        ax.plot(range(len(own)), own, color=color, lw=1.8, marker="o" if len(own) < 5 else None, ms=4)
    ax.set_ylim(0, 1.08 * ax.dataLim.ymax)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    series_legend(figure, entropies)
    return figure
