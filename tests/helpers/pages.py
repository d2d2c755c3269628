"""HTML pages, as tests read them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bionas_fast.runs.folder import RunFolder
from bionas_fast.space import Genotype, Space


class Page(HTMLParser):
    """Parser of a page: checks that its tags match; collects its text, tags and references."""

    VOID = ("meta", "br", "wbr", "hr", "img", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.words = [], Counter(), Counter(), [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value] += 1
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def write_search(
    path: Path,
    genotype: Genotype,
    space: Space,
    *,
    settings: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    alphas: Mapping[str, Any] | None = None,
    machine: Mapping[str, Any] | None = None,
) -> Path:
    """Write the folder of a search by hand."""
    path.mkdir(parents=True, exist_ok=True)
    own = {"kind": "search", "dataset": "digits", "method": "darts", "epochs": max(len(metrics), 1), "seed": 0}
    content = {**own, "space": space.name, **(settings or {}), "plugins": [], "machine": dict(machine or {})}
    (path / "config.yaml").write_text(yaml.safe_dump(content))
    (path / "genotype.json").write_text(genotype.to_json())
    folder = RunFolder.open(path)
    folder.write_metrics(metrics)
    if alphas:
        rows = {kind: np.asarray(values, dtype=np.float64) for kind, values in alphas.items()}
        np.savez(path / "alphas.npz", candidates=np.array([str(c) for c in space.candidates]), **rows)
    return path
