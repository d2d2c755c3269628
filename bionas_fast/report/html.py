"""The reports of a search and of a training: self-contained HTML pages."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bionas_fast.plugins import plugin_options
from bionas_fast.report import charts
from bionas_fast.report.figure import genotype_figure
from bionas_fast.report.page import headline, html_page, inline_figure, settings_and_machine, table_of_rows
from bionas_fast.runs.files import write_atomic
from bionas_fast.space import Genotype, Space, get_space


def write_report(
    path: str | Path,
    *,
    genotype: Genotype,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    alphas: Mapping[str, np.ndarray],
    space: Space | str,
    machine: Mapping[str, str],
    summary: Mapping[str, Any],
) -> None:
    """Write the report of a search: one HTML file, without scripts or external resources, replaced atomically.

    Args:
        path: the file, inside the folder of the run; its commands at the end name that folder.
        genotype: the result of the search.
        config: the settings; may be nested.
        metrics: one entry per epoch. ``epoch``, ``train_loss``, ``train_accuracy``, ``valid_loss``, ``valid_accuracy``,
            ``alpha_entropy`` and ``seconds`` are drawn if recorded; all entries are in the table.
        alphas: for each kind of cell [epochs + 1, edges, candidates] before the softmax; empty for a
            method without architecture parameters.
        space: the search space that the last two axes belong to.
        machine: properties of the machine that ran the search.
        summary: the headline metrics, by name.

    Raises:
        InputError: ``alphas`` do not fit the space, or the file cannot be written.
    """
    path, space = Path(path), get_space(space)
    alphas = {kind: np.asarray(alphas[kind], dtype=np.float64) for kind in genotype.cells if len(alphas.get(kind, ()))}
    charts.check_alphas(alphas, space)
    content = _content(path, genotype, config, metrics, alphas, space, machine, summary)
    write_atomic(path, html_page(f"Search {genotype.hash}", content))


def _content(
    path: Path,
    genotype: Genotype,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    alphas: Mapping[str, np.ndarray],
    space: Space,
    machine: Mapping[str, str],
    summary: Mapping[str, Any],
) -> Iterable[str]:
    yield f"<h1>Architecture and learning rules <code>{genotype.hash}</code></h1>"
    yield headline(summary)
    yield from _cells(genotype)

    yield "<h2>Learning rules over depth</h2>"
    if alphas:
        yield "<p>By α: the softmax weight of all candidates with a rule, averaged over the edges into a node.</p>"
    yield inline_figure(
        charts.shares_figure(genotype, alphas, space), "shares", "Share of every learning rule, node by node"
    )

    if alphas:
        yield "<h2>α over time</h2>"
        yield "<p>Softmax weight after every epoch, averaged over the edges of a cell: by rule, then by operation.</p>"
        yield inline_figure(charts.rules_figure(alphas, space), "rules", "Weight of every rule over epochs")
        yield inline_figure(
            charts.operations_figure(alphas, space), "operations", "Weight of every operation over epochs"
        )

    yield from _training(metrics)
    yield settings_and_machine(config, machine)
    run = _words(path, config)
    yield "<h2>Next steps</h2>"
    yield f"<p>Show the cells in a terminal:</p><pre>bionas-fast show {run}</pre>"
    yield f"<p>Train the genotype network:</p><pre>bionas-fast train {run}</pre>"


def write_training_report(
    path: str | Path,
    *,
    name: str,
    genotype: Genotype | None,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    machine: Mapping[str, str],
    summary: Mapping[str, str],
) -> None:
    """Write the report of a training: one HTML file, without scripts or external resources, replaced atomically.

    Args:
        path: the file, inside the folder of the run; its command at the end names that folder.
        name: the name of the network.
        genotype: its genotype, if it has one.
        config, metrics, machine: as of :func:`write_report`.
        summary: the headline figures, by name.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    content = (
        f"<h1>Training <code>{escape(name)}</code></h1>",
        headline(summary),
        *(() if genotype is None else _cells(genotype)),
        *_training(metrics),
        settings_and_machine(config, machine),
        "<h2>Next steps</h2>",
        "<p>Accuracy by class, confusion matrix and calibration:</p>",
        f"<pre>bionas-fast evaluate {_words(path, config)}</pre>",
    )
    write_atomic(path, html_page(f"Training {name}", content))


def _cells(genotype: Genotype) -> Iterable[str]:
    yield "<h2>The cells</h2>"
    yield "<p>An edge applies an operation and propagates errors by its learning rule; a node sums its edges.</p>"
    yield inline_figure(genotype_figure(genotype), "cells", "The cells as graphs")
    yield f"<details><summary>As JSON</summary><pre>{escape(genotype.to_json())}</pre></details>"


def _training(metrics: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    curves = charts.curves_figure(metrics)
    if curves is not None:
        yield "<h2>Training</h2>"
        yield inline_figure(curves, "curves", "Loss, accuracy and further metrics over epochs")
    if metrics:
        yield f"<details><summary>Metrics of all epochs</summary>{table_of_rows(metrics)}</details>"


def _words(path: Path, config: Mapping[str, Any]) -> str:
    """Return the words of a command that name the run, escaped."""
    return escape(shlex.join([str(path.parent), *plugin_options(config.get("plugins", ()))]))
