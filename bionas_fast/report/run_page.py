"""The page of one run, a search or a training: a self-contained HTML file, from the content of the run folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bionas_fast.plugins import plugin_options
from bionas_fast.report import charts
from bionas_fast.report.figure import genotype_figure
from bionas_fast.report.heat import alpha_map, confusion_map
from bionas_fast.report.history import changes, history_figure
from bionas_fast.report.layers import alignment_figure, gradients_figure
from bionas_fast.report.layout import cell_title
from bionas_fast.report.page import (
    Html,
    Section,
    definitions,
    folded,
    headline,
    html_page,
    inline_figure,
    paragraph,
    settings_table,
    table_of_rows,
    warning,
)
from bionas_fast.report.robustness import AttackTable
from bionas_fast.report.run import ReportedRun
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.folder import REPORT
from bionas_fast.runs.summary import NO_FACTS, RunFacts
from bionas_fast.space import Genotype


def write_report(
    run: str | Path,
    path: str | Path | None = None,
    *,
    facts: RunFacts = NO_FACTS,
    attacks: Mapping[str, AttackTable] | None = None,
) -> None:
    """Write the report of a run: one HTML file, without scripts or external resources, replaced atomically.

    Args:
        run: the run folder. Whatever the run has written is shown, also if it is not complete.
        path: the file; by default ``report.html`` in the run folder.
        facts: further facts about the result.
        attacks: results of attacks on the network, by name.

    Raises:
        InputError: a file of the run is damaged, or the report cannot be written.
    """
    found = ReportedRun.read(run)
    kind = "Search" if found.searches else "Training"
    page = html_page(f"{kind} {found.title}", _header(found, kind, facts), _sections(found, facts, attacks or {}))
    write_atomic(found.path / REPORT if path is None else Path(path), page)


def _header(run: ReportedRun, kind: str, facts: RunFacts) -> Iterator[str]:
    summary, machine = run.summary, run.record.machine
    yield f"<h1>{kind} <code>{escape(run.title)}</code></h1>"
    name = "validation accuracy of the supernet" if run.searches else "test accuracy"
    numbers = {name: None if run.accuracy is None else f"{run.accuracy:.2f} %"}
    if run.metrics and "test_top5" in run.metrics[-1]:
        numbers["top-5 accuracy"] = f"{run.metrics[-1]['test_top5']:.2f} %"
    if run.genotype is not None:
        numbers["rules"] = ", ".join(run.genotype.rules)
    if run.metrics:
        numbers["time"] = _duration(sum(float(row.get("seconds") or 0) for row in run.metrics))
    yield headline({name: value for name, value in (numbers | dict(facts.lines)).items() if value is not None})
    epochs = f"{summary.done} of {summary.epochs}" if summary.done < summary.epochs else summary.epochs
    command = machine.get("command")
    begun = {
        "dataset": summary.dataset,
        "method" if run.searches else "network": summary.label.partition(" ")[2] or summary.label,
        "seed": summary.seed,
        "epochs": epochs,
        "begun": machine.get("date"),
        "command": command and Html(f"<code>{escape(str(command))}</code>"),
        "folder": str(run.path),
    }
    yield definitions({name: value for name, value in begun.items() if value is not None})
    yield from map(warning, facts.notes)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _sections(run: ReportedRun, facts: RunFacts, attacks: Mapping[str, AttackTable]) -> list[Section]:
    parts: dict[str, Iterable[str]] = {
        "The cells": _cells(run, facts),
        "Learning rules": _rules(run, facts),
        "Genotype over time": _history(run),
        "α over time": _alphas(run),
        "Training": _training(run),
        "Test images by class": _classes(run),
        "Layers": layers({run.title: run.layers} if run.layers else {}),
        "Robustness": robustness(attacks),
        "Configuration": [settings_table(run.settings)],
        "Machine": _machine(run),
        "Next steps": _next(run),
    }
    found = {title: "\n".join(content) for title, content in parts.items()}
    return [Section(title, content) for title, content in found.items() if content]


def _cells(run: ReportedRun, facts: RunFacts) -> Iterator[str]:
    if run.genotype is not None:
        yield from cells(run.genotype, leads=facts.leads)
    if facts.edges:
        rows = table_of_rows(facts.edges, "The chosen candidate on every edge, and the next one")
        yield folded("The lead on every edge", rows)


def cells(genotype: Genotype, name: str = "cells", leads: Sequence[float] = ()) -> Iterator[str]:
    """Draw the cells of a genotype.

    Args:
        genotype: the genotype.
        name: a prefix of the ids of the drawing, unique on the page.
        leads: the lead of the candidate on every edge; see :func:`bionas_fast.report.figure.genotype_figure`.
    """
    inputs = len(genotype.skeleton.input_names)
    edges = [
        f"{cell_title(kind)}: {edge.candidate} from {edge.source} to {inputs + node}"
        for kind, cell in genotype.cells.items()
        for node, own in enumerate(cell.nodes)
        for edge in own
    ]
    yield inline_figure(
        genotype_figure(genotype, leads),
        name,
        f"The cells of genotype {genotype.hash} as graphs. {'; '.join(edges)}",
        "An edge applies an operation and propagates errors by its learning rule, which gives it its colour; a node "
        "sums its edges."
        + (" Thickness: the lead over the next candidate, from none to twice its weight." if leads else ""),
    )
    yield folded("As JSON", f'<pre tabindex="0">{escape(genotype.to_json())}</pre>')


def _rules(run: ReportedRun, facts: RunFacts) -> Iterator[str]:
    if facts.shares:
        text = ", ".join(f"{rule} {100 * share:.1f} %" for rule, share in facts.shares.items())
        yield inline_figure(
            charts.network_figure(facts.shares),
            "weights",
            f"Share of the weights of the network by learning rule: {text}",
            "Of all weights, stem, preprocessing and classifier included. The larger the share of bp, the less the "
            "accuracy says about the other rules."
            + (" Of the genotype network with the cells and channels of the search." if run.searches else ""),
        )
    if run.genotype is not None:
        by_alpha = (
            "By α: the softmax weight of all candidates with a rule, averaged over the edges into a node. Top bar: the "
            "shares among the candidates, from which equal α begin. "
        )
        yield inline_figure(
            charts.shares_figure(run.genotype, run.alphas, run.space),
            "shares",
            "Share of every learning rule, node by node, in each kind of cell",
            (by_alpha if run.alphas else "") + "Genotype: the edges into a node.",
        )


def _history(run: ReportedRun) -> Iterator[str]:
    if not run.genotypes:
        return
    counts = changes(run.genotypes)
    yield inline_figure(
        history_figure(run.genotypes),
        "history",
        "The edges of the genotype after every epoch; edges that another one replaced in an epoch: "
        f"{', '.join(map(str, counts)) or 'none yet'}",
        "Rows: edges, from state to node. A bar: the epochs in which the genotype had this edge with this candidate.",
    )


def _alphas(run: ReportedRun) -> Iterator[str]:
    if run.space is None or run.genotype is None or not run.alphas:
        return
    caption = "Softmax weight after every epoch, averaged over the edges of a cell."
    yield inline_figure(
        charts.rules_figure(run.alphas, run.space),
        "rules",
        "Softmax weight of every learning rule over epochs",
        caption,
    )
    yield inline_figure(
        charts.operations_figure(run.alphas, run.space), "operations", "Softmax weight of every operation over epochs"
    )
    for kind, alpha in run.alphas.items():
        yield alpha_map(kind, alpha[-1], run.space, run.genotype)


def _training(run: ReportedRun) -> Iterator[str]:
    curves = charts.curves_figure(run.metrics, None if run.space is None else len(run.space.candidates))
    if curves is not None:
        yield inline_figure(
            curves,
            "curves",
            "Loss, accuracy, seconds, and in a search the entropy of α, over epochs; all numbers are in the table",
            "Dotted: the entropy of equal α; at 0 every edge has decided for one candidate." if run.alphas else "",
        )
    if run.metrics:
        yield folded("Metrics of all epochs", table_of_rows(run.metrics, "Metrics of all epochs"))


def _classes(run: ReportedRun) -> Iterator[str]:
    if run.evaluation is None:
        return
    found = run.evaluation
    yield headline(
        {
            "images": f"{found.images:,}",
            "accuracy": f"{found.accuracy:.2f} %",
            "cross-entropy": f"{found.loss:.4f}",
            "calibration error": f"{found.calibration_error:.2f} %",
        }
    )
    yield confusion_map(found, run.classes)


def layers(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Draw what networks recorded of their layers.

    Args:
        rows: the rows of :func:`bionas_fast.analysis.record_layers` by network.
    """
    if not rows:
        return
    yield inline_figure(
        gradients_figure(rows),
        "gradients",
        "Variance of the gradient, noise scale, and cosine to the true gradient, over epochs or layers",
        "Thin lines: layers; thick: their mean. Noise scale: tr Cov(g) / ‖mean g‖². The variance follows the "
        "magnitude of the feedback; noise scale and cosine do not, and compare rules.",
    )
    if any(row["angle"] is not None for own in rows.values() for row in own):
        yield inline_figure(
            alignment_figure(rows),
            "alignment",
            "Angle between feedback B and weights W, and the ratio of their norms, over epochs or layers",
            "0° and 1 under bp; an angle of 90° is no alignment.",
        )


def robustness(attacks: Mapping[str, AttackTable]) -> Iterator[str]:
    """Write the results of attacks, by name."""
    for number, (name, table) in enumerate(attacks.items()):
        if len(attacks) > 1:
            yield f"<h3>{escape(name)}</h3>"
        yield table.html(f"attack{number}")


def _machine(run: ReportedRun) -> Iterator[str]:
    if run.machine:
        yield paragraph("Recorded when the run began.")
        yield settings_table(run.machine)


def _next(run: ReportedRun) -> Iterator[str]:
    words = shlex.join([str(run.path), *plugin_options(run.record.plugins)])
    if run.searches:
        commands = {
            "Show the cells in a terminal:": f"show {words}",
            "Train the genotype network:": f"train {words}",
            "Entropy, and the composition of the genotype:": f"analyze {words}",
        }
    else:
        commands = {
            "Accuracy by class, confusion matrix and calibration:": f"evaluate {words}",
            "Robustness, and how blind the attacker is:": f"attack {words}",
            "Gradients, alignment and weights:": f"analyze {words}",
        }
    for text, command in commands.items():
        yield f'{paragraph(text)}<pre tabindex="0">bionas-fast {escape(command)}</pre>'
