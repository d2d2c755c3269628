"""Descriptions of the Hebbian rules, common to all implementations."""

from __future__ import annotations

from typing import NamedTuple

#: The values that describe a rule and an update, in the order of the enums in csrc/cpu/hebbian.h; see
#: :mod:`.reference` for the formulas.
ACTIVITIES = ("linear", "normalised", "hard", "soft", "competing")
DECAYS = ("none", "square", "activity", "output", "lower")
NORMALISATIONS = ("none", "clamp", "unit", "max")

#: The activities by which channels compete.
COMPETITIONS = ("hard", "soft", "competing")


class HebbianRule(NamedTuple):
    """The activity y computed from u, and the decay that is subtracted from the outer product.

    Attributes:
        activity: one of :data:`ACTIVITIES`; ``competing`` is ``soft`` with negative sign except at the largest u.
        decay: one of :data:`DECAYS`.
    """

    activity: str
    decay: str


RULES = {
    "plain": HebbianRule("linear", "none"),
    "hebb": HebbianRule("normalised", "none"),
    "oja": HebbianRule("linear", "square"),
    "instar": HebbianRule("linear", "activity"),
    "hard_wta": HebbianRule("hard", "activity"),
    "soft_wta": HebbianRule("soft", "activity"),
    "softhebb": HebbianRule("competing", "output"),
    "hpca": HebbianRule("linear", "lower"),
    "hpca_relu": HebbianRule("linear", "lower"),
    "bcm": HebbianRule("linear", "none"),
}
#: The rules whose activity is a function of u that is computed before the kernels, which then receive it.
COMPUTED_BEFORE = ("hpca_relu", "bcm")
