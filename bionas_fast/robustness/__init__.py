"""Robustness of networks: attacks through feedback and through true gradients, and checks for blinded attackers."""

from bionas_fast.robustness.attack import attack, expect_possible
from bionas_fast.robustness.attacks import attack_names, parse_attack
from bionas_fast.robustness.config import AttackConfig
from bionas_fast.robustness.results import Outcome, Proportion, Robustness
from bionas_fast.robustness.victim import Victim

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
