"""Checks of every kernel on the devices of a machine: ``bionas-fast doctor --deep``."""

from bionas_fast.verification.check import Outcome
from bionas_fast.verification.running import CHECKS, LIMIT, verify
