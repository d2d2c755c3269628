"""The parts of a self-contained HTML page: frame, sections, figures, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from numbers import Integral, Real
from typing import Any

from matplotlib.figure import Figure

from bionas_fast.report.colors import FAINT, INK, MUTED, PAPER, SURFACE
from bionas_fast.report.figure import render

#: Colours of the light and the dark scheme; the colours of the rules suit both.
_LIGHT = {"ink": INK, "muted": MUTED, "faint": FAINT, "surface": SURFACE, "paper": PAPER}
_DARK = {"ink": "#e8eaee", "muted": "#98a1af", "faint": "#3a414c", "surface": "#22272f", "paper": "#15181d"}
#: On a narrow screen a figure is scrolled, not shrunk below this many pixels per inch, or it could not be read.
_PIXELS_PER_INCH = 78
#: The width of the content on a wide screen, in pixels: no figure is scrolled there.
_WIDE = 1060
#: The opacity of the strongest cell of a heat map, on which text can be read in both schemes.
_STRONGEST = 0.6

_STYLE = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 70rem;
  background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h1 code { font-weight: 400; color: var(--muted); margin-left: .6rem }
h2 { font-size: 1.15rem; margin: 3rem 0 .3rem; scroll-margin-top: 1rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem }
p { margin: .3rem 0 1rem; color: var(--muted); max-width: 60rem; overflow-wrap: anywhere }
a { color: inherit; text-underline-offset: .15em }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; border-radius: .2rem }
.skip { position: absolute; left: -100rem; padding: .4rem .8rem; background: var(--surface) }
.skip:focus { left: 1rem; top: .5rem }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; margin: 1.2rem 0 0; padding: 0 }
figure { margin: 0 0 1.2rem }
figcaption, .caption { color: var(--muted); font-size: .88rem; max-width: 60rem; margin: 0; padding: .3rem 0 }
svg { display: block; width: 100%%; height: auto }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em }
pre { background: var(--surface); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; user-select: all }
details { margin: 1rem 0 }
summary { cursor: pointer; color: var(--muted) }
table { border-collapse: collapse; width: 100%%; font-size: .88rem }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
  border-bottom: 1px solid var(--faint); overflow-wrap: anywhere }
th { font-weight: 400; color: var(--muted) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 1rem 0; font-size: .92rem }
dt { color: var(--muted) }
dd { margin: 0; overflow-wrap: anywhere }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; padding: 0; list-style: none }
.facts li { background: var(--surface); border-radius: .5rem; padding: .7rem 1rem; min-width: 8.5rem }
.facts b { display: block; font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere }
.facts span { color: var(--muted); font-size: .85rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%%), 1fr)); gap: 0 2.5rem }
.pair > section { min-width: 0 }
.scroll { overflow-x: auto }
.scroll + .caption { margin-top: 1.2rem }
.numbers { font-variant-numeric: tabular-nums }
.numbers th, .numbers td { overflow-wrap: normal }
.numbers th[scope="row"] { min-width: 6.5rem }
.heat { width: auto; font-size: .8rem; font-variant-numeric: tabular-nums }
.heat th, .heat td { padding: .15rem .4rem; border: 0; text-align: right; white-space: nowrap }
.heat thead th { text-align: center; vertical-align: bottom; white-space: normal; overflow-wrap: normal }
.heat .first { border-left: 1px solid var(--faint) }
.heat .chosen { outline: 2px solid var(--ink); outline-offset: -2px; font-weight: 700 }
.warning { border-left: 4px solid #c2410c; padding: .2rem 0 .2rem .8rem; color: var(--ink) }
@media (max-width: 36rem) {
  body { padding: 1.2rem .9rem 3rem }
  h1 { font-size: 1.35rem }
  dl { grid-template-columns: 1fr }
  dd { margin-bottom: .4rem }
  .facts li { flex: 1 1 8rem; min-width: 0 }
}
@media print { nav, .skip { display: none } .scroll { overflow: visible } }
"""


@dataclass(frozen=True)
class Section:
    """A section of a page, which its navigation names.

    Attributes:
        title: its heading.
        content: its HTML, after the heading.
    """

    title: str
    content: str

    @property
    def id(self) -> str:
        """The anchor of the heading."""
        return "section-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower().replace("α", "alpha")).strip("-")

    def html(self) -> str:
        """Write the section."""
        heading = f'<h2 id="{self.id}">{escape(self.title)}</h2>'
        return f'<section aria-labelledby="{self.id}">\n{heading}\n{self.content}\n</section>'


def html_page(title: str, header: Iterable[str], sections: Sequence[Section]) -> str:
    """Write a page without scripts or external resources.

    Args:
        title: its title in the browser.
        header: the HTML above the navigation, with the only ``h1``.
        sections: its sections, whose titles differ.
    """
    light, dark = ("; ".join(f"--{name}: {color}" for name, color in c.items()) for c in (_LIGHT, _DARK))
    links = "".join(f'<li><a href="#{own.id}">{escape(own.title)}</a></li>' for own in sections)
    lines = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE % {'light': light, 'dark': dark}}</style>\n</head>\n<body>",
        '<a class="skip" href="#content">Skip to the content</a>',
        "<header>",
        *header,
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        '</header>\n<main id="content">',
        *map(Section.html, sections),
        "</main>\n</body>\n</html>\n",
    )
    return "\n".join(lines)


def paragraph(text: str) -> str:
    """Write a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def warning(text: str) -> str:
    """Write a paragraph of plain text that stands out."""
    return f'<p class="warning" role="note">{escape(text)}</p>'


def folded(summary: str, content: str) -> str:
    """Write content that is shown on request."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def headline(metrics: Mapping[str, Any]) -> str:
    """Format the headline metrics."""
    blocks = (f"<li><b>{formatted(value)}</b><span>{label(name)}</span></li>" for name, value in metrics.items())
    return f'<ul class="facts">{"".join(blocks)}</ul>'


def definitions(pairs: Mapping[str, Any]) -> str:
    """Write names and values as a list, in two columns where there is room."""
    return (
        f"<dl>{''.join(f'<dt>{label(name)}</dt><dd>{formatted(value, 12)}</dd>' for name, value in pairs.items())}</dl>"
    )


def inline_figure(figure: Figure, name: str, description: str, caption: str = "") -> str:
    """Convert a figure to an inline SVG element with the width, colours and unique ids of the page.

    Args:
        figure: the figure.
        name: a prefix of its ids, unique on the page.
        description: the text that replaces it for whoever does not see it.
        caption: plain text below it.
    """
    svg = render(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"|font-family: [^;"]+;?', "", svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", svg)
    for variable, color in _LIGHT.items():
        svg = svg.replace(color, f"var(--{variable})")
    text = escape(description)
    width = min(_PIXELS_PER_INCH * figure.get_figwidth(), _WIDE)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{text}" style="min-width: {width:.0f}px"', 1)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{_scrolled(svg, description)}{below}</figure>"


def _scrolled(content: str, name: str) -> str:
    """Put content into a box that scrolls sideways, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{content}</div>'


def _captioned(table: str, caption: str) -> str:
    """Put a table below its caption, which does not scroll with it."""
    return f'<p class="caption">{escape(caption)}</p>{_scrolled(table, caption)}'


def settings_table(settings: Mapping[str, Any]) -> str:
    """Write settings, which may be nested, one per row."""
    lines = (
        f'<tr><th scope="row">{escape(str(name))}</th><td>{formatted(value, digits=12)}</td></tr>'
        for name, value in flat(settings).items()
    )
    return f"<table>{''.join(lines)}</table>"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings; names of settings inside others follow a dot."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def table_of_rows(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Write rows as a table; its columns are all names that occur in them, the first one names the rows.

    Args:
        rows: the rows; values of :class:`Html` are written as they are.
        caption: plain text above the table.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th scope="col">{label(name)}</th>' for name in names)

    def line(row: Mapping[str, Any]) -> str:
        first, *others = (formatted(row.get(name)) for name in names)
        return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'

    body = "".join(map(line, rows))
    table = (
        f'<table class="numbers" aria-label="{escape(caption)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    return _captioned(table, caption)


@dataclass(frozen=True)
class Heat:
    """A cell of a heat map.

    Attributes:
        text: its text.
        strength: from 0 to 1, the opacity of its colour in relation to the strongest.
        color: ``#rrggbb``.
        kind: names of classes of the style sheet.
    """

    text: str
    strength: float = 0.0
    color: str = "#0072b2"
    kind: str = ""

    def html(self, kind: str = "") -> str:
        """Write the cell, with a further class of the style sheet."""
        red, green, blue = (int(self.color[k : k + 2], 16) for k in (1, 3, 5))
        opacity = round(_STRONGEST * min(max(self.strength, 0.0), 1.0), 2)
        style = f' style="background: rgb({red} {green} {blue} / {opacity:g})"' if opacity else ""
        kinds = f"{self.kind} {kind}".strip()
        kind = f' class="{kinds}"' if kinds else ""
        return f"<td{kind}{style}>{escape(self.text)}</td>"


def heat_map(
    caption: str, columns: Sequence[tuple[str, Sequence[str]]], rows: Mapping[str, Sequence[Heat]], corner: str
) -> str:
    """Write a heat map as a table, whose numbers can be read in both schemes and by a screen reader.

    Args:
        caption: plain text above it.
        columns: groups of columns: a name, and the names below it; a single empty one for a column on its own.
        rows: the cells of each row by its name.
        corner: the heading of the names of the rows.
    """
    grouped = any(name for _, names in columns for name in names)
    depth = 2 if grouped else 1
    starts = set(accumulate(len(names) for _, names in columns)) if grouped else set()
    head = f'<th rowspan="{depth}" scope="col">{escape(corner)}</th>'
    for title, names in columns:
        span = f'colspan="{len(names)}" scope="colgroup"' if any(names) else f'rowspan="{depth}" scope="col"'
        head += f"<th {span}>{breakable(title)}</th>"
    below = "".join(f'<th scope="col">{breakable(name)}</th>' for _, names in columns for name in names if name)
    lines = []
    for name, cells in rows.items():
        row = (cell.html("first" if number in starts else "") for number, cell in enumerate(cells))
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(row)}</tr>')
    table = (
        f'<table class="heat" aria-label="{escape(caption)}"><thead><tr>{head}</tr>'
        f"{f'<tr>{below}</tr>' if grouped else ''}</thead><tbody>{''.join(lines)}</tbody></table>"
    )
    return _captioned(table, caption)


def breakable(name: str) -> str:
    """Format a name so that its line may break after an underscore."""
    return escape(name).replace("_", "_<wbr>")


class Html(str):
    """Text that is HTML already; :func:`formatted` leaves it as it is."""


def link(target: str, text: str) -> Html:
    """Write a link."""
    return Html(f'<a href="{escape(target)}">{escape(text)}</a>')


def label(name: object) -> str:
    """Format a name."""
    return escape(str(name).replace("_", " "))


def formatted(value: Any, digits: int = 4) -> str:
    """Format a value: numbers with ``digits`` significant digits, sequences separated by commas."""
    if isinstance(value, Html):
        return str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(formatted(item, digits) for item in value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{float(value):.{digits}g}"
    return "–" if value is None else escape(str(value))
