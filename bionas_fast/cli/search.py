"""``bionas-fast search``."""

from __future__ import annotations

import shlex

import bionas_fast as bf
from bionas_fast import report
from bionas_fast.cli.options import Given, Out, Resume, takes_settings, with_plugins
from bionas_fast.cli.output import Bars, err, interruptible, out, print_lines
from bionas_fast.plugins import plugin_options


@with_plugins
@takes_settings("search")
def search(given: Given, folder: Out = None, resume: Resume = None) -> None:
    """Search for an architecture and the learning rule of every layer in it."""
    config = bf.SearchConfig(**given.settings("search")) if resume is None else given.resumed("search", resume)
    with interruptible():
        result = bf.search(config, out=folder, resume=resume, progress=Bars())
    report.draw_genotype(result.genotype, out)
    out.print()
    plugins = plugin_options(given.options.get("plugins", []))
    print_lines(
        {
            "validation accuracy": f"{result.final_metrics['valid_accuracy']:.2f} % (supernet)",
            "time": f"{sum(row['seconds'] for row in result.metrics):.0f} s",
            "run folder": str(result.run_dir),
            "next": shlex.join(["bionas-fast", "train", str(result.run_dir), *plugins]),
        }
    )
    for message in result.messages:
        err.print(f"note: {message}", markup=False, highlight=False, soft_wrap=True)
