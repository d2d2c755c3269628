"""Charts of results over seeds: dots, means, intervals, differences; accuracy over epochs and shares of bp."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from bionas_fast import rules
from bionas_fast.report.charts import panel_grid, style_axes
from bionas_fast.report.colors import INK, MUTED, SURFACE, rule_color
from bionas_fast.runs.seeds import Interval, SeedTable, Series

#: The largest number of panels in a row.
_COLUMNS = 4
#: Inches between variants that share a position.
_DODGE = 0.16


def results_figure(table: SeedTable) -> Figure:
    """Draw the result of every seed and the interval of every variant, and the paired differences to the first one."""
    first, *others = table.series
    titles = [table.metric, *([f"{table.metric}, minus {first.name}"] if others else [])]
    figure, axes = panel_grid(len(titles), len(titles), 0.42 * len(table.series) + 0.85)
    for ax, heading in zip(axes, titles, strict=True):
        style_axes(ax, heading)
        ax.grid(axis="x", color=SURFACE, lw=1)
        ax.set(ylim=(len(table.series) - 0.5, -0.6), yticks=())
        for position, series in enumerate(table.series):
            # Above its line, where a name of any length has room.
            ax.text(0.005, position - 0.22, series.name, color=MUTED, size=8, transform=ax.get_yaxis_transform())
    for position, series in enumerate(table.series):
        _draw(axes[0], position, series)
        common = series.values.keys() & first.values.keys()
        if others and series is not first and common:
            _draw(axes[1], position, Series(series.name, {s: series.values[s] - first.values[s] for s in common}))
    if others:
        axes[1].axvline(0, color=MUTED, lw=1)
    return figure


def _draw(ax: Axes, position: int, series: Series) -> None:
    """Draw the values of a series as dots, its mean as a line and its interval as a bar."""
    if not series.values:
        return
    color, interval = _color(series.name), series.interval
    ax.plot(list(series.values.values()), [position] * len(series.values), "o", color=color, ms=4, alpha=0.5)
    ax.errorbar(interval.mean, position, xerr=interval.half_width, fmt="|", color=color, ms=12, capsize=3)


def shares_figure(table: SeedTable) -> Figure:
    """Draw the mean of every variant and its interval over the share of the weights that learn by back-propagation."""
    groups: dict[float, list[Series]] = {}
    for series in table.series:
        if series.values and series.shares:
            groups.setdefault(round(series.share, 1), []).append(series)
    figure, (ax,) = panel_grid(1, 1, 2.6)
    style_axes(ax, f"{table.metric}, over the share of back-propagation in %")
    for share, own in groups.items():
        for number, series in enumerate(own):
            # Variants with the same share stand next to each other, centred on it.
            inches = (number - (len(own) - 1) / 2) * _DODGE
            place = ax.transData + ScaledTranslation(inches, 0, figure.dpi_scale_trans)
            interval, color = series.interval, _color(series.name)
            bar: dict[str, Any] = {"fmt": "o", "color": color, "ms": 4, "capsize": 2, "transform": place}
            ax.errorbar(share, interval.mean, yerr=interval.half_width, **bar)
            ax.text(
                share,
                0.02,
                series.name,
                transform=ax.get_xaxis_transform() + ScaledTranslation(inches, 0, figure.dpi_scale_trans),
                rotation=90,
                size=8,
                color=MUTED,
                ha="center",
                va="bottom",
            )
    ends = [end for own in groups.values() for series in own for end in _ends(series.interval)]
    height = max(ends) - min(ends) or 1.0
    # The names stand below the intervals.
    ax.set(xlim=(-8, 108), ylim=(min(ends) - 0.6 * height, max(ends) + 0.08 * height))
    return figure


def _ends(interval: Interval) -> tuple[float, float]:
    half = 0.0 if math.isnan(interval.half_width) else interval.half_width
    return interval.mean - half, interval.mean + half


def curves_figure(curves: Mapping[str, Sequence[Mapping[int, float]]]) -> Figure:
    """Draw one panel per variant: the accuracy over epochs, one line per seed.

    Args:
        curves: for each variant and seed, the accuracy after the epochs that have one.
    """
    figure, axes = panel_grid(len(curves), min(len(curves), _COLUMNS), 1.7)
    values = [value for own in curves.values() for curve in own for value in curve.values()]
    for ax, (name, own) in zip(axes, curves.items(), strict=True):
        style_axes(ax, name)
        for curve in own:
            epochs, accuracies = list(curve), list(curve.values())
            ax.plot(epochs, accuracies, color=_color(name), lw=1.3, marker="o" if len(curve) < 2 else None)
        ax.set_ylim(min(values) - 1, max(values) + 1)
        reached = {epoch for curve in own for epoch in curve}
        if len(reached) == 1:
            (epoch,) = reached
            ax.set(xlim=(epoch - 0.5, epoch + 0.5), xticks=(epoch,))
            continue
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def _color(variant: str) -> str:
    """Return the colour of the rule of a variant; ink for one that is not named after a rule."""
    rule = variant.rpartition(" ")[2].partition(":")[0]
    return rule_color(rule) if rule in rules.names() else INK
