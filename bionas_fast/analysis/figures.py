"""Figure of the weights of one or several networks; those of their layers are in :mod:`bionas_fast.report.layers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from bionas_fast.analysis.weights import WeightDistribution
from bionas_fast.report.charts import panel_grid, series_legend, style_axes
from bionas_fast.report.colors import series_colors


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
