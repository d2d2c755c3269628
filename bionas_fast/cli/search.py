"""``bionas-fast search``."""

from __future__ import annotations

import shlex
from pathlib import Path

import bionas_fast as bf
from bionas_fast import report
from bionas_fast.cli.options import Given, Out, Resume, Seeds, repeated_folder, takes_settings, with_plugins
from bionas_fast.cli.output import err, interruptible, out, print_lines, print_table, progress
from bionas_fast.errors import InputError
from bionas_fast.plugins import plugin_options


@with_plugins
@takes_settings("search")
def search(given: Given, seeds: Seeds = None, folder: Out = None, resume: Resume = None) -> None:
    """Search for an architecture and the learning rule of every layer in it."""
    if seeds is None:
        _search(given, folder, resume)
        return
    config, folder = bf.SearchConfig(**given.settings("search")), repeated_folder(folder, resume)
    with interruptible():
        table = bf.repeat_search(config, seeds=seeds, out=folder, progress=progress())
    print_table(table.rows())
    out.print()
    print_lines({**table.summary(), "folder": str(table.folder)})
    if table.failures:
        raise InputError("; ".join(table.failures))


def _search(given: Given, folder: Path | None, resume: Path | None) -> None:
    config = bf.SearchConfig(**given.settings("search")) if resume is None else given.resumed("search", resume)
    with interruptible():
        result = bf.search(config, out=folder, resume=resume, progress=progress())
    report.draw_genotype(result.genotype, out)
    out.print()
    plugins = plugin_options(given.options.get("plugins", []))
    cost = result.cost_of_robustness
    print_lines(
        {
            "validation accuracy": f"{result.final_metrics['valid_accuracy']:.2f} % (supernet)",
            "time": f"{sum(row['seconds'] for row in result.metrics):.0f} s",
            **({"robust search": f"{cost}, on perturbed images"} if cost else {}),
            "run folder": str(result.run_dir),
            "next": shlex.join(["bionas-fast", "train", str(result.run_dir), *plugins]),
        }
    )
    for message in result.messages:
        err.print(f"note: {message}", markup=False, highlight=False, soft_wrap=True)
