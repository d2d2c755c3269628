"""The Hebbian rules as data: what every implementation of them shares."""

from __future__ import annotations

from typing import NamedTuple

#: The values that describe a rule and an update, in the order that the kernels count them; csrc/cpu/hebbian.h repeats
#: the lists. Their formulas stand in :mod:`.reference`.
ACTIVITIES = ("linear", "normalised", "hard", "soft", "competing")
DECAYS = ("none", "square", "activity", "output", "lower")
NORMALISATIONS = ("none", "clamp", "unit", "max")


class HebbianRule(NamedTuple):
    """The activity y that a rule makes of u, and the decay that it subtracts from the outer product.

    Attributes:
        activity: one of :data:`ACTIVITIES`; ``competing`` is ``soft``, negative but at the largest.
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
}
