"""Plots of robust accuracy over ε."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bionas_fast.report.charts import panel_grid, style_axes
from bionas_fast.report.colors import FAINT, INK, MUTED
from bionas_fast.robustness.results import Robustness

#: Colours that also people who are colour-blind tell apart (Okabe and Ito 2008).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES: Mapping[str | None, str] = {"feedback": "-", "true": "--", None: "-"}


def accuracy_figure(results: Mapping[str, Robustness]) -> Figure:
    """Draw robust accuracy over ε, one panel per attack that ε bounds: solid through feedback, dashed through true.

    Args:
        results: the results by network; all of the same attacks.
    """
    first = next(iter(results.values()))
    attacks = list(dict.fromkeys(own.attack for own in first.outcomes if own.eps is not None))
    figure, axes = panel_grid(len(attacks), min(3, len(attacks)), 2.4)
    for ax, attack in zip(axes, attacks, strict=False):
        style_axes(ax, f"{attack}: accuracy %, over ε")
        ax.set(ylim=(-3, 103))
        for (name, own), color in zip(results.items(), _COLORS * len(results), strict=False):
            for gradient in ("feedback", "true", None):
                chosen = sorted(
                    (out for out in own.outcomes if out.attack == attack and out.gradient == gradient),
                    key=lambda out: out.eps or 0.0,
                )
                if not chosen:
                    continue
                points = [(0.0, own.clean_accuracy), *((out.eps or 0.0, out.accuracy) for out in chosen)]
                x, y = [eps for eps, _ in points], [share.percent for _, share in points]
                low, high = zip(*(share.interval for _, share in points), strict=True)
                ax.plot(x, y, _STYLES[gradient], color=color, marker="o", ms=3, lw=1.4, label=name)
                ax.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
        ax.axhline(0, color=FAINT, lw=1)
    lines = [
        *(Line2D([], [], color=color) for _, color in zip(results, _COLORS * len(results), strict=False)),
        *(Line2D([], [], color=INK, ls=style) for style in ("-", "--")),
    ]
    names = [*results, "through feedback, or without gradient", "through the true gradient"]
    figure.legend(lines, names, loc="lower center", ncol=4, frameon=False, fontsize=8, labelcolor=MUTED)
    return figure
