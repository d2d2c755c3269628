"""Tables of attacks on one or several networks: as text, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bionas_fast.robustness.attacks import attack_names, parse_attack
from bionas_fast.robustness.results import Outcome, Robustness, show_eps
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.seeds import NOTHING, TABLE_CSV, TABLE_JSON, TABLE_MARKDOWN, comma_separated, markdown

LEGEND = (
    "Robust accuracy: the share of all images, in %, that are classified correctly before and after the attack, with "
    "its 95 % confidence interval (Wilson); after a comma, the median Euclidean norm of successful perturbations. "
    "Blindness: through feedback minus through the true gradient, ± its 95 % confidence interval."
)


def legend(results: Mapping[str, Robustness]) -> str:
    """Return the meaning of the numbers of the table, and the settings of the attacks."""
    first = next(iter(results.values()))
    parts = [f"{len(first.clean):,} images"]
    if first.config is not None:
        own, attacks = first.config, map(parse_attack, first.config.attacks)
        defaults = (a for a in attacks if a.family.amount and a.name in attack_names())
        parts += [f"{a.family.amount} of {a.name} {a.amount}" for a in defaults]
        parts += [f"step size {show_eps(own.step_size)}", f"restarts {own.restarts}", f"seed {own.seed}"]
        parts += ["targeted"] * own.targeted + [f"gradients averaged over {own.eot} draws"] * bool(own.eot)
    return f"{LEGEND} Settings: {', '.join(parts)}."


def rows(results: Mapping[str, Robustness]) -> list[dict[str, str]]:
    """Return the rows of the table as text: one per attack, gradient and ε, with the networks side by side.

    Args:
        results: the results by network; all of the same attacks.
    """
    first = next(iter(results.values()))
    table = [_row("none", None, None, {name: str(own.clean_accuracy) for name, own in results.items()})]
    for attack, eps in dict.fromkeys((own.attack, own.eps) for own in first.outcomes):
        gradients = [own.gradient for own in first.outcomes if (own.attack, own.eps) == (attack, eps)]
        for gradient in gradients:
            found = {name: _text(own, attack, gradient, eps) for name, own in results.items()}
            table.append(_row(attack, gradient, eps, found))
        if len(gradients) > 1:
            found = {name: str(own.blindness(attack, eps)) for name, own in results.items()}
            table.append(_row(attack, "blindness", eps, found))
    for eps in dict.fromkeys(own.eps for own in first.outcomes if own.eps is not None):
        table.append(_row("worst case", None, eps, {name: str(own.worst_case(eps)) for name, own in results.items()}))
    return table


def _row(attack: str, gradient: str | None, eps: float | None, found: Mapping[str, str]) -> dict[str, str]:
    return {
        "attack": attack,
        "gradient": gradient or NOTHING,
        "ε": NOTHING if eps is None else show_eps(eps),
        **found,
    }


def _text(own: Robustness, attack: str, gradient: str | None, eps: float | None) -> str:
    (outcome,) = (o for o in own.outcomes if (o.attack, o.gradient, o.eps) == (attack, gradient, eps))
    median = outcome.median_distance
    distance = "" if eps is not None else f", {NOTHING if math.isnan(median) else f'{median:.2f}'}"
    return f"{outcome.accuracy}{distance}"


def to_markdown(results: Mapping[str, Robustness]) -> str:
    """Write the table in Markdown, followed by its legend and the warnings."""
    warnings = "".join(f"- {text}\n" for text in _warnings(results))
    return f"{markdown(rows(results))}\n{legend(results)}\n" + (f"\n{warnings}" if warnings else "")


def _warnings(results: Mapping[str, Robustness]) -> Iterator[str]:
    for name, own in results.items():
        yield from (f"{name}: {warning}" for warning in own.warnings)


def records(results: Mapping[str, Robustness]) -> list[dict[str, Any]]:
    """Return one record for each network, attack, gradient and ε, the clean accuracy among them as attack ``none``."""
    found = []
    for name, own in results.items():
        clean = Outcome("none", None, None, own.clean)
        for outcome in (clean, *own.outcomes):
            low, high = outcome.accuracy.interval
            found.append(
                {
                    "network": name,
                    "attack": outcome.attack,
                    "gradient": outcome.gradient,
                    "eps": outcome.eps,
                    "images": len(own.clean),
                    "accuracy": outcome.accuracy.percent,
                    "low": low,
                    "high": high,
                    "of_correct": _finite(own.of_correct(outcome).percent),
                    "median_distance": _finite(outcome.median_distance),
                    "seconds": outcome.seconds,
                }
            )
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(results: Mapping[str, Robustness], folder: Path) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.json`` into a folder, atomically.

    Raises:
        InputError: a file cannot be written.
    """
    found = records(results)
    write_atomic(folder / TABLE_MARKDOWN, to_markdown(results))
    write_atomic(folder / TABLE_CSV, comma_separated(tuple(found[0]), [tuple(row.values()) for row in found]))
    content = {
        "records": found,
        "rows": rows(results),
        "legend": legend(results),
        "warnings": {name: list(own.warnings) for name, own in results.items()},
    }
    write_atomic(folder / TABLE_JSON, json.dumps(content, indent=2, allow_nan=False) + "\n")
