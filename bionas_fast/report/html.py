"""The reports of a search and of a training: self-contained HTML pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bionas_fast.plugins import plugin_options
from bionas_fast.report import charts
from bionas_fast.report.colors import FAINT, INK, MUTED, PAPER, SURFACE
from bionas_fast.report.figure import genotype_figure, render
from bionas_fast.runs.files import write_atomic
from bionas_fast.space import Genotype, Space, get_space

#: Colours of the light and the dark scheme; the colours of the rules suit both.
_LIGHT = {"ink": INK, "muted": MUTED, "faint": FAINT, "surface": SURFACE, "paper": PAPER}
_DARK = {"ink": "#e8eaee", "muted": "#98a1af", "faint": "#3a414c", "surface": "#22272f", "paper": "#15181d"}

_STYLE = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 70rem;
  background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif }
h1 { font-size: 1.7rem; margin: 0 }
h1 code { font-weight: 400; color: var(--muted); margin-left: .6rem }
h2 { font-size: 1.15rem; margin: 3rem 0 .3rem }
p { margin: .3rem 0 1rem; color: var(--muted); max-width: 60rem }
svg { display: block; width: 100%%; height: auto }
svg + svg { margin-top: 1.2rem }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em }
pre { background: var(--surface); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; user-select: all }
details { margin: 1rem 0 }
summary { cursor: pointer; color: var(--muted) }
table { border-collapse: collapse; width: 100%%; font-size: .88rem }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
  border-bottom: 1px solid var(--faint); overflow-wrap: anywhere }
th { font-weight: 400; color: var(--muted); white-space: nowrap }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 }
.facts div { background: var(--surface); border-radius: .5rem; padding: .7rem 1rem; min-width: 8.5rem }
.facts b { display: block; font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere }
.facts span { color: var(--muted); font-size: .85rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2.5rem }
.scroll { overflow-x: auto }
.numbers { font-variant-numeric: tabular-nums }
.numbers th, .numbers td { overflow-wrap: normal }
"""


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
    page = _page(path, genotype, config, metrics, alphas, space, machine, summary)
    write_atomic(path, "\n".join(page))


def _page(
    path: Path,
    genotype: Genotype,
    config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    alphas: Mapping[str, np.ndarray],
    space: Space,
    machine: Mapping[str, str],
    summary: Mapping[str, Any],
) -> Iterable[str]:
    yield from _head(f"Search {genotype.hash}")
    yield f"<h1>Architecture and learning rules <code>{genotype.hash}</code></h1>"
    yield _facts(summary)
    yield from _cells(genotype)

    yield "<h2>Learning rules over depth</h2>"
    if alphas:
        yield "<p>By α: the softmax weight of all candidates with a rule, averaged over the edges into a node.</p>"
    yield _inline(charts.shares_figure(genotype, alphas, space), "shares", "Share of every learning rule, node by node")

    if alphas:
        yield "<h2>α over time</h2>"
        yield "<p>Softmax weight after every epoch, averaged over the edges of a cell: by rule, then by operation.</p>"
        yield _inline(charts.rules_figure(alphas, space), "rules", "Weight of every rule over epochs")
        yield _inline(charts.operations_figure(alphas, space), "operations", "Weight of every operation over epochs")

    yield from _training(metrics)
    yield from _origin(config, machine)
    run = _words(path, config)
    yield "<h2>Next steps</h2>"
    yield f"<p>Show the cells in a terminal:</p><pre>bionas-fast show {run}</pre>"
    yield f"<p>Train the genotype network:</p><pre>bionas-fast train {run}</pre>"
    yield "</body>\n</html>\n"


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
    page = [*_head(f"Training {name}"), f"<h1>Training <code>{escape(name)}</code></h1>", _facts(summary)]
    page += [*(() if genotype is None else _cells(genotype)), *_training(metrics), *_origin(config, machine)]
    page += ["<h2>Next steps</h2>", "<p>Accuracy by class, confusion matrix and calibration:</p>"]
    page += [f"<pre>bionas-fast evaluate {_words(Path(path), config)}</pre>", "</body>\n</html>\n"]
    write_atomic(Path(path), "\n".join(page))


def _head(title: str) -> Iterable[str]:
    light, dark = ("; ".join(f"--{name}: {color}" for name, color in c.items()) for c in (_LIGHT, _DARK))
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title>"
    yield f"<style>{_STYLE % {'light': light, 'dark': dark}}</style>\n</head>\n<body>"


def _facts(summary: Mapping[str, Any]) -> str:
    facts = (f"<div><b>{_text(value)}</b><span>{_label(name)}</span></div>" for name, value in summary.items())
    return f'<div class="facts">{"".join(facts)}</div>'


def _cells(genotype: Genotype) -> Iterable[str]:
    yield "<h2>The cells</h2>"
    yield "<p>An edge applies an operation and propagates errors by its learning rule; a node sums its edges.</p>"
    yield _inline(genotype_figure(genotype), "cells", "The cells as graphs")
    yield f"<details><summary>As JSON</summary><pre>{escape(genotype.to_json())}</pre></details>"


def _training(metrics: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    curves = charts.curves_figure(metrics)
    if curves is not None:
        yield "<h2>Training</h2>"
        yield _inline(curves, "curves", "Loss, accuracy and further metrics over epochs")
    if metrics:
        yield f"<details><summary>Metrics of all epochs</summary>{_rows(metrics)}</details>"


def _origin(config: Mapping[str, Any], machine: Mapping[str, str]) -> Iterable[str]:
    yield '<div class="pair">'
    yield f"<section><h2>Configuration</h2>{_pairs(_flat(config))}</section>"
    yield f"<section><h2>Machine</h2>{_pairs(machine)}</section>"
    yield "</div>"


def _words(path: Path, config: Mapping[str, Any]) -> str:
    """Return the words of a command that name the run, escaped."""
    return escape(shlex.join([str(path.parent), *plugin_options(config.get("plugins", ()))]))


def _inline(figure: Figure, name: str, description: str) -> str:
    """Convert a figure to an inline SVG element with the width, colours and unique ids of the page."""
    svg = render(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"|font-family: [^;"]+;?', "", svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", svg)
    for variable, color in _LIGHT.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _pairs(pairs: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{escape(str(name))}</th><td>{_text(value, digits=12)}</td></tr>" for name, value in pairs.items())
    return f"<table>{''.join(rows)}</table>"


def _rows(metrics: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in metrics for name in row))
    head = "".join(f"<th>{_label(name)}</th>" for name in names)
    cells = ("".join(f"<td>{_text(row.get(name))}</td>" for name in names) for row in metrics)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table class="numbers"><tr>{head}</tr>{body}</table></div>'


def _label(name: object) -> str:
    return escape(str(name).replace("_", " "))


def _text(value: Any, digits: int = 4) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item, digits) for item in value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{float(value):.{digits}g}"
    return "–" if value is None else escape(str(value))
