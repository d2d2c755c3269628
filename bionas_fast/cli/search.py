"""``bionas-fast search``."""

from __future__ import annotations

import json
import shlex

import bionas_fast as bf
from bionas_fast import report
from bionas_fast.cli.dry_run import print_plan
from bionas_fast.cli.options import Given, Seeds, Wanted, takes_record, takes_settings, with_plugins
from bionas_fast.cli.output import interruptible, out, print_json, print_lines, print_table, progress, say
from bionas_fast.errors import InputError
from bionas_fast.plugins import plugin_options


@with_plugins
@takes_settings("search")
@takes_record("wanted", Wanted)
def search(given: Given, wanted: Wanted, seeds: Seeds = None) -> None:
    """Search for an architecture and the learning rule of every layer in it."""
    if seeds is not None:
        _search_seeds(given, wanted, seeds)
    elif wanted.dry_run:
        print_plan(given.recorded("search", wanted.resume))
    else:
        _search(given, wanted)


def _search_seeds(given: Given, wanted: Wanted, seeds: int) -> None:
    config, folder = given.recorded("search"), wanted.repeated_folder()
    with interruptible():
        table = bf.repeat_search(config, seeds=seeds, out=folder, progress=progress())
    if wanted.as_json:
        print_json({"folder": str(table.folder), "seeds": table.rows()})
    else:
        print_table(table.rows())
        out.print()
        print_lines({**table.summary(), "folder": str(table.folder)})
    if table.failures:
        raise InputError("; ".join(table.failures))


def _search(given: Given, wanted: Wanted) -> None:
    resume = wanted.resume
    config = given.recorded("search") if resume is None else given.resumed("search", resume)
    with interruptible():
        result = bf.search(config, out=wanted.folder, resume=resume, progress=progress())
    for message in result.messages:
        say(f"note: {message}")
    if wanted.as_json:
        genotype = json.loads(result.genotype.to_json())
        print_json({"run": str(result.run_dir), **result.final_metrics, "genotype": genotype})
        return
    report.draw_genotype(result.genotype, out)
    out.print()
    plugins = plugin_options(given.options.get("plugins", []))
    cost = result.cost_of_robustness
    print_lines(
        {
            "validation accuracy": f"{result.final_metrics['valid_accuracy']:.2f} % (supernet)",
            "decided": str(result.decision),
            "time": f"{sum(row['seconds'] for row in result.metrics):.0f} s",
            **({"robust search": f"{cost}, on perturbed images"} if cost else {}),
            "run folder": str(result.run_dir),
            "next": shlex.join(["bionas-fast", "train", str(result.run_dir), *plugins]),
        }
    )
