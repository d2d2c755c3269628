"""The parts of a self-contained HTML page: frame, figures, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Integral, Real
from typing import Any

from matplotlib.figure import Figure

from bionas_fast.report.colors import FAINT, INK, MUTED, PAPER, SURFACE
from bionas_fast.report.figure import render

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
svg { display: block; width: 100%%; min-width: 38rem; height: auto }
.scroll + .scroll { margin-top: 1.2rem }
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


def html_page(title: str, content: Iterable[str]) -> str:
    """Write a page without scripts or external resources, with the lines of ``content`` as its body."""
    light, dark = ("; ".join(f"--{name}: {color}" for name, color in c.items()) for c in (_LIGHT, _DARK))
    lines = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE % {'light': light, 'dark': dark}}</style>\n</head>\n<body>",
        *content,
        "</body>\n</html>\n",
    )
    return "\n".join(lines)


def headline(metrics: Mapping[str, Any]) -> str:
    """Format the headline metrics."""
    blocks = (f"<div><b>{formatted(value)}</b><span>{label(name)}</span></div>" for name, value in metrics.items())
    return f'<div class="facts">{"".join(blocks)}</div>'


def inline_figure(figure: Figure, name: str, description: str) -> str:
    """Convert a figure to an inline SVG element with the width, colours and unique ids of the page."""
    svg = render(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"|font-family: [^;"]+;?', "", svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", svg)
    for variable, color in _LIGHT.items():
        svg = svg.replace(color, f"var(--{variable})")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    return f'<div class="scroll">{svg}</div>'


def settings_and_machine(config: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Write the settings, which may be nested, next to the properties of the machine."""
    sections = {"Configuration": _flat(config), "Machine": machine}
    return f'<div class="pair">{"".join(_section(*pair) for pair in sections.items())}</div>'


def _section(title: str, pairs: Mapping[str, Any]) -> str:
    lines = (
        f"<tr><th>{escape(str(name))}</th><td>{formatted(value, digits=12)}</td></tr>" for name, value in pairs.items()
    )
    return f"<section><h2>{title}</h2><table>{''.join(lines)}</table></section>"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def table_of_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as a table; its columns are all names that occur in them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{label(name)}</th>" for name in names)
    cells = ("".join(f"<td>{formatted(row.get(name))}</td>" for name in names) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table class="numbers"><tr>{head}</tr>{body}</table></div>'


def label(name: object) -> str:
    """Format a name."""
    return escape(str(name).replace("_", " "))


def formatted(value: Any, digits: int = 4) -> str:
    """Format a value: numbers with ``digits`` significant digits, sequences separated by commas."""
    if isinstance(value, (list, tuple)):
        return ", ".join(formatted(item, digits) for item in value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{float(value):.{digits}g}"
    return "–" if value is None else escape(str(value))
