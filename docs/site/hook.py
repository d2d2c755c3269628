"""Hook of mkdocs: what Markdown and docstrings write otherwise than GitHub and Sphinx."""

from __future__ import annotations

import re


def on_page_content(html: str, **_: object) -> str:
    """Turn roles of docstrings, such as ``:class:`Name```, into plain code; unescape ``\\|`` in the code of tables."""
    html = re.sub(r":(?:class|data|exc|func|meth|mod):(?=<(?:code|a))", "", html)
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.DOTALL)
