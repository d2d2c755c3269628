"""``bionas-fast evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bionas_fast.cli.options import Plugins, with_plugins
from bionas_fast.cli.output import out, print_lines
from bionas_fast.data import Dataset, load_dataset
from bionas_fast.errors import InputError
from bionas_fast.evaluate import Evaluation, measure
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runtime.device import resolve_device
from bionas_fast.train import load
from bionas_fast.train.network import DataShape

#: The largest confusion matrix that is printed.
_PRINTED = 20


@with_plugins
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    dataset: Annotated[str | None, typer.Option(help="Another dataset with the same classes.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Use best.pt, chosen by held-out images.")] = False,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:1.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugins: Plugins = None,
) -> None:
    """Test a trained network: accuracy (top-1 and top-5), per class, confusion matrix, calibration."""
    network = load(run, plugins=plugins or (), best=best).to(resolve_device(device))
    record = RunFolder.open(run).read()
    recorded = record.settings
    folder = data_dir if data_dir or dataset else recorded.get("data_dir")
    data = load_dataset(dataset or str(recorded["dataset"]), folder)
    shape = DataShape.read(record)
    _expect_fitting(data, shape)
    found = measure(network, data.test_images, data.test_labels, mean=shape.mean, std=shape.std)
    if as_json:
        print(json.dumps(_as_json(found), indent=2))
    else:
        _print(found)


def _expect_fitting(data: Dataset, shape: DataShape) -> None:
    found = {"in_channels": data.in_channels, "num_classes": data.num_classes}
    for name, value in found.items():
        if value != getattr(shape, name):
            raise InputError(
                f"dataset {data.name!r}: {name} is {value}, but the network was trained with {getattr(shape, name)}"
            )


def _as_json(found: Evaluation) -> dict[str, object]:
    return {
        "images": found.images,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "top5": found.top5,
        "calibration_error": found.calibration_error,
        "per_class": list(found.per_class),
        "confusion": found.confusion.tolist(),
    }


def _print(found: Evaluation) -> None:
    lines = {"images": f"{found.images:,}", "accuracy": f"{found.accuracy:.2f} %"}
    if found.top5 is not None:
        lines["top-5 accuracy"] = f"{found.top5:.2f} %"
    print_lines({**lines, "loss": f"{found.loss:.4f}", "calibration error": f"{found.calibration_error:.2f} %"})
    out.print()
    classes = len(found.confusion)
    shown = range(classes) if classes <= _PRINTED else ()
    table = Table("class", "accuracy %", *(f"→ {label}" for label in shown), box=None, header_style="bold")
    for label, accuracy in enumerate(found.per_class):
        counts = (str(count) if count else "·" for count in found.confusion[label].tolist()) if shown else ()
        table.add_row(str(label), "–" if accuracy is None else f"{accuracy:.2f}", *counts)
    out.print(table)
