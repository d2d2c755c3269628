"""Robustness of networks: attacks through feedback and through true gradients, and checks for blinded attackers."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.robustness.attacking import attack, expect_possible
    from bionas_fast.robustness.attacks import attack_names, parse_attack
    from bionas_fast.robustness.config import AttackConfig
    from bionas_fast.robustness.results import Outcome, Proportion, Robustness
    from bionas_fast.robustness.victim import Victim
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "attacking": "attack expect_possible",
            "attacks": "attack_names parse_attack",
            "config": "AttackConfig",
            "results": "Outcome Proportion Robustness",
            "victim": "Victim",
        },
    )

__all__ = [
    "AttackConfig",
    "Outcome",
    "Proportion",
    "Robustness",
    "Victim",
    "attack",
    "attack_names",
    "expect_possible",
    "parse_attack",
]
