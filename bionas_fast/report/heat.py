"""Heat maps of the pages: α of every edge and candidate, and the test images by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from bionas_fast.evaluation import Evaluation
from bionas_fast.report.charts import softmax
from bionas_fast.report.colors import rule_color
from bionas_fast.report.layout import cell_title
from bionas_fast.report.page import Heat, heat_map, paragraph, table_of_rows
from bionas_fast.space import Genotype, Space

#: The largest confusion matrix that is shown whole; of larger ones, the most frequent errors.
_CLASSES, _ERRORS = 20, 20


def alpha_map(kind: str, alpha: np.ndarray, space: Space, genotype: Genotype) -> str:
    """Write softmax(α) of one kind of cell, edges by candidates.

    Args:
        kind: the kind of cell.
        alpha: [edges, candidates] before the softmax.
        space: the edges and candidates.
        genotype: its edges are outlined.
    """
    weights = softmax(alpha)
    cell, inputs = genotype.cells[kind], len(genotype.skeleton.input_names)
    chosen = {
        (node, edge.source, edge.candidate.operation, edge.candidate.learning)
        for node, edges in enumerate(cell.nodes)
        for edge in edges
    }
    rows = {}
    for (node, source), row in zip(space.edges, weights, strict=True):
        rows[f"{source} → {inputs + node}"] = [
            Heat(
                f"{100 * weight:.0f}",
                weight / weights.max(),
                rule_color(candidate.learning),
                "chosen" if (node, source, candidate.operation, candidate.learning) in chosen else "",
            )
            for weight, candidate in zip(row, space.candidates, strict=True)
        ]
    columns = [
        (operation, [candidate.learning or "" for candidate in group])
        for operation, group in groupby(space.candidates, lambda candidate: candidate.operation)
    ]
    caption = (
        f"{cell_title(kind)}: softmax(α) in %, of every edge (rows) and candidate (columns). Equal α are "
        f"{100 / len(space.candidates):.1f} % everywhere; outlined: what the genotype has."
    )
    return heat_map(caption, columns, rows, "edge")


def confusion_map(evaluation: Evaluation, classes: Sequence[str] = ()) -> str:
    """Write the confusion matrix, or of many classes the most frequent errors and the accuracy on every class.

    Args:
        evaluation: the network on the test images.
        classes: the names of the classes; empty if they have none.
    """
    names = class_names(len(evaluation.confusion), classes)
    if len(names) > _CLASSES:
        return _errors(evaluation, names)
    counts = evaluation.confusion.tolist()
    rows = {}
    for index, (name, row, accuracy) in enumerate(zip(names, counts, evaluation.per_class, strict=True)):
        total = max(sum(row), 1)
        cells = [
            Heat(str(count) if count else "·", count / total, _RIGHT if column == index else _WRONG)
            for column, count in enumerate(row)
        ]
        rows[name] = [Heat("–" if accuracy is None else f"{accuracy:.1f}", (accuracy or 0) / 100, _RIGHT), *cells]
    caption = (
        "Confusion matrix: images of the class of the row that the network takes for the class of the column. "
        "Colours are shares of the row."
    )
    return heat_map(caption, [("accuracy %", [""]), ("taken for", names)], rows, "class")


#: Colours of right and wrong predictions (Okabe & Ito 2008).
_RIGHT, _WRONG = "#0072b2", "#d55e00"


def _errors(evaluation: Evaluation, names: Sequence[str]) -> str:
    wrong = evaluation.confusion.clone()
    wrong.fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:_ERRORS].tolist()
    pairs = [(*divmod(index, len(names)), int(wrong.flatten()[index])) for index in order]
    rows = [{"class": names[row], "taken for": names[column], "images": count} for row, column, count in pairs if count]
    every = [{"class": name, "accuracy %": value} for name, value in zip(names, evaluation.per_class, strict=True)]
    return (
        table_of_rows(rows, "The most frequent errors") if rows else paragraph("No errors.")
    ) + f"<details><summary>Accuracy on every class</summary>{table_of_rows(every, 'Accuracy by class')}</details>"


def class_map(evaluations: Mapping[str, Sequence[Evaluation]], classes: Sequence[str] = ()) -> str:
    """Write the accuracy of several networks on every class.

    Args:
        evaluations: the networks of each variant; accuracies are means over them.
        classes: the names of the classes; empty if they have none.
    """
    number = len(next(iter(evaluations.values()))[0].confusion)
    rows = {}
    for name, own in evaluations.items():
        means = []
        for label in range(number):
            values = [accuracy for found in own if (accuracy := found.per_class[label]) is not None]
            means.append(sum(values) / len(values) if values else None)
        rows[name] = [Heat("–" if mean is None else f"{mean:.1f}", (mean or 0) / 100) for mean in means]
    caption = "Accuracy on the test images of every class, in %; with several seeds, means over them."
    return heat_map(caption, [(name, [""]) for name in class_names(number, classes)], rows, "network")


def class_names(number: int, names: Sequence[str]) -> list[str]:
    """Return the names of the classes, or their labels if they have none or names that are not unique."""
    fits = len(names) == number and len(set(names)) == number
    return list(names) if fits else [str(label) for label in range(number)]
