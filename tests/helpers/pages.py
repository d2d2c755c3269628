"""HTML pages, as tests read them."""

from __future__ import annotations

import json
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
from bionas_fast.training import ResNetConfig


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
    genotypes: Sequence[Genotype] = (),
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
    if genotypes:
        rows = [{"epoch": k, **json.loads(own.to_json())} for k, own in enumerate(genotypes, 1)]
        folder.write_rows("genotypes.jsonl", rows)
    if alphas:
        rows = {kind: np.asarray(values, dtype=np.float64) for kind, values in alphas.items()}
        np.savez(path / "alphas.npz", candidates=np.array([str(c) for c in space.candidates]), **rows)
    return path


def write_training(
    path: Path,
    *,
    rule: str = "usf",
    epochs: int = 2,
    seed: int = 0,
    accuracies: Sequence[float] = (50.0, 75.0),
    confusion: Sequence[Sequence[int]] | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the folder of the training of a residual network on digits by hand; not complete with few accuracies."""
    with RunFolder.create(path) as folder:
        shape = {"in_channels": 1, "num_classes": 10, "image_size": [8, 8], "mean": [0.5], "std": [0.25]}
        settings = ResNetConfig(rule=rule, epochs=epochs, seed=seed).settings()
        folder.write_config("resnet", settings, network={**shape, "classes": list("abcdefghij")})
        rows = [{"epoch": k, "test_accuracy": value, "seconds": 1.5} for k, value in enumerate(accuracies, 1)]
        folder.write_metrics(rows)
        if layers:
            folder.write_rows("layers.jsonl", layers)
        if confusion is not None:
            total = sum(map(sum, confusion))
            right = 100 * sum(row[k] for k, row in enumerate(confusion)) / total
            found = {"images": total, "loss": 0.5, "accuracy": right, "top5": None, "calibration_error": 2.5}
            (path / "evaluation.json").write_text(json.dumps({**found, "confusion": confusion}))
    return path


def layer_rows(epochs: int = 3, count: int = 2) -> list[dict[str, Any]]:
    """Return rows of layers as a training records them."""
    values = {"variance": 1e-3, "noise_scale": 2.0, "cosine": 0.5, "angle": 40.0, "norm_ratio": 1.5}
    return [
        {"epoch": epoch, "layer": f"conv{k}", "rule": "usf", "sigma": 0.1, "kurtosis": 0.0}
        | {name: value * (1 + epoch + k) for name, value in values.items()}
        for epoch in range(epochs)
        for k in range(count)
    ]


def write_attack(folder: Path, networks: Mapping[str, tuple[float, float]]) -> Path:
    """Write the table of an attack by hand: for each network its accuracy through feedback and true gradient."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, (feedback, true) in networks.items():
        own: list[tuple[str, str | None, float | None, float]] = [("none", None, None, 90.0)]
        own += [("square-50", None, 0.1, 60.0)]
        own += [("fgsm", "feedback", eps, feedback) for eps in (0.05, 0.1)]
        own += [("fgsm", "true", eps, true) for eps in (0.05, 0.1)]
        for attack, gradient, eps, value in own:
            where = {"network": name, "attack": attack, "gradient": gradient, "eps": eps}
            records.append({**where, "accuracy": value, "low": value - 5, "high": value + 5})
    blindness = {name: f"{feedback - true:+.1f}" for name, (feedback, true) in networks.items()}
    rows = [{"attack": "fgsm", "gradient": "blindness", "ε": "0.1", **blindness}]
    content = {"records": records, "rows": rows, "legend": "A legend.", "warnings": {"net": ["<obfuscated>"]}}
    (folder / "table.json").write_text(json.dumps(content))
    return folder
