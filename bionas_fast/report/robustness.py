"""Robustness on the pages: the table of an attack, read from its folder, and its charts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bionas_fast.errors import InputError
from bionas_fast.report.charts import panel_grid, series_legend, style_axes
from bionas_fast.report.colors import FAINT, INK, SURFACE, series_colors
from bionas_fast.report.page import inline_figure, paragraph, table_of_rows, warning

#: The file of the table in the folder of an attack.
TABLE = "table.json"
#: The row of a record of unchanged images.
_CLEAN = "none"
_STYLES: Mapping[str | None, str] = {"feedback": "-", "true": "--", None: "-"}
_NUMBERS = ("accuracy", "low", "high")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AttackTable:
    """The table of an attack on one or several networks.

    Attributes:
        rows: its rows as text, one per attack, gradient and ε, with the networks side by side.
        legend: the meaning of its numbers.
        records: for each network, attack, gradient and ε: ``network``, ``attack`` (``none`` for unchanged images),
            ``gradient``, ``eps`` (in units of [0, 1]), and in percent ``accuracy`` with its interval ``low``, ``high``.
        warnings: reasons to doubt the figures, by network.
    """

    rows: Sequence[Mapping[str, str]]
    legend: str
    records: Sequence[Record]
    warnings: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, folder: str | Path) -> AttackTable:
        """Read the table from the folder that ``bionas-fast attack`` wrote.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = Path(folder) / TABLE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise InputError(f"{folder} holds no results of a finished attack: it has no {TABLE}") from None
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}") from None
        try:
            records = [dict(record) for record in content["records"]]
            for record in records:
                record["eps"] = None if record["eps"] is None else float(record["eps"])
                record.update({name: float(record[name]) for name in _NUMBERS})
                record.update(network=str(record["network"]), attack=str(record["attack"]))
                if record["gradient"] not in _STYLES:
                    raise ValueError(f"gradient {record['gradient']!r}")
            rows = [{str(name): str(cell) for name, cell in row.items()} for row in content["rows"]]
            warnings = {str(name): tuple(map(str, own)) for name, own in content["warnings"].items()}
            legend = str(content["legend"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: not the table of an attack: {error!r:.100}") from None
        if not rows or not any(record["attack"] == _CLEAN for record in records):
            raise InputError(f"{path}: not the table of an attack: it has no accuracy on unchanged images")
        return cls(rows, legend, records, warnings)

    def html(self, name: str) -> str:
        """Write the charts, the table and the warnings.

        Args:
            name: a prefix of the ids of its charts, unique on the page.
        """
        return "".join(self._parts(name))

    def _parts(self, name: str) -> Iterator[str]:
        for network, own in self.warnings.items():
            yield from (warning(f"{network}: {text}") for text in own)
        yield inline_figure(
            gap_figure(self.records),
            f"{name}-gap",
            "Accuracy in percent under each attack with its 95 % interval, through the feedback and through the true "
            "gradient, network by network. The table below has all numbers.",
            "A filled dot: through the feedback that the network learns by, or an attack without gradient. A ring: "
            "through the true gradient. The line between them is the blindness of an attacker who uses the feedback: "
            "what it adds to the accuracy is no robustness.",
        )
        if len({record["eps"] for record in self.records if record["eps"] is not None}) > 1:
            yield inline_figure(
                accuracy_figure(self.records),
                f"{name}-eps",
                "Accuracy in percent over ε, one panel per attack. The table below has all numbers.",
            )
        yield table_of_rows(self.rows, "Accuracy under attack, in percent")
        yield paragraph(self.legend)


def accuracy_figure(records: Sequence[Record]) -> Figure:
    """Draw robust accuracy over ε, one panel per attack that ε bounds: solid through feedback, dashed through true.

    Args:
        records: as of :class:`AttackTable`; all networks under the same attacks.
    """
    networks = series_colors(dict.fromkeys(record["network"] for record in records))
    attacks = list(dict.fromkeys(record["attack"] for record in records if record["eps"] is not None))
    figure, axes = panel_grid(len(attacks), min(3, len(attacks)), 2.4, entries=len(networks) + 2)
    for ax, attack in zip(axes, attacks, strict=True):
        style_axes(ax, f"{attack}: accuracy %, over ε")
        ax.set(ylim=(-3, 103))
        for network, color in networks.items():
            own = [record for record in records if record["network"] == network]
            (clean,) = (record for record in own if record["attack"] == _CLEAN)
            for gradient, style in _STYLES.items():
                chosen = [record for record in own if record["attack"] == attack and record["gradient"] == gradient]
                if not chosen:
                    continue
                points = [{**clean, "eps": 0.0}, *sorted(chosen, key=lambda record: record["eps"])]
                eps, accuracy, low, high = ([point[key] for point in points] for key in ("eps", *_NUMBERS))
                ax.plot(eps, accuracy, style, color=color, marker="o", ms=3, lw=1.4, label=network)
                ax.fill_between(eps, low, high, color=color, alpha=0.12, lw=0)
        ax.axhline(0, color=FAINT, lw=1)
    through = (("through feedback, or without gradient", INK, "-"), ("through the true gradient", INK, "--"))
    series_legend(figure, networks, *through)
    return figure


def gap_figure(records: Sequence[Record]) -> Figure:
    """Draw the accuracy under every attack, one panel per network; the difference between the gradients is a line.

    Args:
        records: as of :class:`AttackTable`; all networks under the same attacks.
    """
    networks = series_colors(dict.fromkeys(record["network"] for record in records))
    attacks = list(dict.fromkeys((record["attack"], record["eps"]) for record in records))
    columns = min(len(networks), 3)
    figure, axes = panel_grid(len(networks), columns, 0.3 * len(attacks) + 0.75, left=1.7)
    for number, (ax, (network, color)) in enumerate(zip(axes, networks.items(), strict=True)):
        style_axes(ax, f"{network}: accuracy %")
        ax.grid(axis="x", color=SURFACE, lw=1)
        ax.set(xlim=(-3, 103), ylim=(len(attacks) - 0.5, -0.5), yticks=range(len(attacks)))
        ax.set_yticklabels(
            [_attack_name(*attack) for attack in attacks] if number % columns == 0 else [""] * len(attacks)
        )
        for position, attack in enumerate(attacks):
            own = {
                record["gradient"]: record
                for record in records
                if record["network"] == network and (record["attack"], record["eps"]) == attack
            }
            if {"feedback", "true"} <= own.keys():
                ends = [own[gradient]["accuracy"] for gradient in ("feedback", "true")]
                ax.plot(ends, [position] * 2, color=color, lw=3, alpha=0.35, solid_capstyle="butt")
            for gradient, record in own.items():
                errors = [[record["accuracy"] - record["low"]], [record["high"] - record["accuracy"]]]
                fill = "none" if gradient == "true" else color
                ax.errorbar(
                    record["accuracy"], position, xerr=errors, fmt="o", ms=5.5, color=color, mfc=fill, elinewidth=1
                )
    return figure


def _attack_name(attack: str, eps: float | None) -> str:
    if attack == _CLEAN:
        return "no attack"
    if eps is None:
        return attack
    steps = eps * 255
    text = f"{eps:g}"
    return (
        f"{attack}, ε {round(steps)}/255"
        if len(text) > 5 and math.isclose(steps, round(steps))
        else f"{attack}, ε {text}"
    )
