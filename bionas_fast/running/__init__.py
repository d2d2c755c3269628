"""Runs: epochs of steps that survive whatever stops them."""

from bionas_fast.running.keeping import keep, opened
from bionas_fast.running.loop import Loop, Phase, cosine
