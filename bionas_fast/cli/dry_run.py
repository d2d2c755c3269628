"""``--dry-run`` of searches and trainings."""

from __future__ import annotations

import yaml

import bionas_fast as bf
from bionas_fast.cli.output import out, print_lines, say
from bionas_fast.config import RunConfig

#: Seconds for the measurement.
_SECONDS = 20.0


def print_plan(config: RunConfig, genotype: bf.Genotype | None = None) -> None:
    """Print the settings of a run as YAML, and what it would cost on this machine.

    Args:
        genotype: the genotype of a training.
    """
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    out.print(settings, markup=False, highlight=False, soft_wrap=True)
    say("measuring a few steps on random images")
    print_lines(bf.estimate(config, genotype, seconds=_SECONDS).lines())
