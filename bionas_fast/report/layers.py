"""Charts of the layers of networks: gradients and feedback, from the rows of an analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bionas_fast.report.charts import panel_grid, series_legend, style_axes
from bionas_fast.report.colors import series_colors

Rows = Sequence[Mapping[str, Any]]
_GRADIENTS = (
    ("variance", "variance of the gradient", True),
    ("noise_scale", "noise scale", True),
    ("cosine", "cosine to the true gradient", False),
)
_ALIGNMENT = (("angle", "angle between B and W, °", False), ("norm_ratio", "‖B‖ / ‖W‖", False))


def gradients_figure(rows: Mapping[str, Rows]) -> Figure:
    """Draw variance, noise scale and cosine: means over the layers by epoch, or by layer if there is one epoch.

    Args:
        rows: the rows of :func:`bionas_fast.analysis.record_layers` by network.
    """
    return _figure(rows, _GRADIENTS)


def alignment_figure(rows: Mapping[str, Rows]) -> Figure:
    """Draw angle and norm ratio of the feedback; arguments as of :func:`gradients_figure`."""
    return _figure(rows, _ALIGNMENT)


def _figure(rows: Mapping[str, Rows], quantities: Sequence[tuple[str, str, bool]]) -> Figure:
    figure, axes = panel_grid(len(quantities), len(quantities), 2.6, entries=len(rows))
    over_time = any(len({row["epoch"] for row in found}) > 1 for found in rows.values())
    draw = _over_time if over_time else _over_layers
    for ax, (key, title, logarithmic) in zip(axes, quantities, strict=True):
        style_axes(ax, f"{title}, by {'epoch' if over_time else 'layer'}")
        for name, color in series_colors(rows).items():
            draw(ax, [row for row in rows[name] if row[key] is not None], key, color, _mean(logarithmic))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if logarithmic:
            ax.set_yscale("log")
    series_legend(figure, rows)
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
