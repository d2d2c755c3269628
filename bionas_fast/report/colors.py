"""The colours of all drawings: one per learning rule, and a few for everything else."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from types import MappingProxyType

INK = "#1c2129"
MUTED = "#6a7280"
FAINT = "#d5d9df"
SURFACE = "#eef0f3"
PAPER = "#ffffff"
#: Figures of test images, beside those of training and validation images.
TESTED = "#c2410c"

#: Okabe & Ito 2008: distinguishable under all common forms of colour blindness, legible on white and on black; and
#: Tol's "muted" (2021), for the rules beyond the paper.
RULE_COLORS = MappingProxyType(
    {
        "usf": "#0072b2",
        "brsf": "#d55e00",
        "frsf": "#009e73",
        "fa": "#cc79a7",
        "bp": "#56b4e9",
        "dfa": "#e69f00",
        "kp": "#882255",
        "nsf": "#999933",
        "nsf_layer": "#ddcc77",
        "dkp": "#332288",
        "wm": "#44aa99",
        "pfa": "#aa4499",
        "drtp": "#117733",
        "sdfa": "#cc6677",
    }
)
#: ColorBrewer's brown and purple: for operations with a built-in learning rule.
OWN_RULE_COLORS = MappingProxyType(
    {"hebbian": "#8c510a", "predictive coding": "#5e3c99", "local predictive coding": "#b2abd2"}
)
#: Tol 2021, "muted": for user-defined rules.
_OTHER_RULES = ("#882255", "#999933", "#aa4499", "#44aa99", "#332288", "#ddcc77", "#117733", "#cc6677")
#: Lines of networks or runs (Okabe & Ito 2008, without the yellow, which is faint on white).
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
#: Operations without weights, hence without a rule.
NO_RULE_COLOR = "#8f97a3"
NO_RULE = "no weights"


def series_colors(names: Iterable[str]) -> dict[str, str]:
    """Assign a colour, ``#rrggbb``, to each of several networks or runs; beyond eight, colours repeat."""
    return {name: _SERIES[number % len(_SERIES)] for number, name in enumerate(names)}


def rule_color(rule: str | None) -> str:
    """Return the colour of a rule, ``#rrggbb``, a function of its name. None stands for no rule."""
    if rule is None:
        return NO_RULE_COLOR
    # crc32, because hash() of a string differs from process to process.
    return (
        RULE_COLORS.get(rule)
        or OWN_RULE_COLORS.get(rule)
        or _OTHER_RULES[zlib.crc32(rule.encode()) % len(_OTHER_RULES)]
    )
