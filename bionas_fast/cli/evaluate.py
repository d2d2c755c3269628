"""``bionas-fast evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import bionas_fast as bf
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import out, print_lines
from bionas_fast.config import DescentConfig, RunConfig
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.kinds import get_kind

if TYPE_CHECKING:
    from bionas_fast.evaluation import Evaluation

#: The largest confusion matrix that is printed.
_PRINTED = 20


@with_plugins
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    dataset: Annotated[str | None, typer.Option(help="Another dataset with the same classes.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Use best.pt, chosen by held-out images.")] = False,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:1.")] = "auto",
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Test a trained network: accuracy (top-1 and top-5), per class, confusion matrix, calibration."""
    from bionas_fast.evaluation import measure
    from bionas_fast.runtime.device import resolve_device

    network = bf.load(run, plugins=plugins or (), best=best).to(resolve_device(device))
    record = RunFolder.open(run).read()
    config = get_kind(record.kind).settings(**{**record.settings, "download": False})
    trained = data = bf.data.configured(config)
    if dataset or data_dir:
        data = bf.data.configured(_with_dataset(config, trained, dataset or config.dataset, data_dir))
    bf.data.expect_shape(data, record.network)
    with bf.precision(config.precision):
        found = measure(network, _test_images(data, trained))
    if as_json:
        print(found.to_json())
    else:
        _print(found)


def _with_dataset(config: RunConfig, trained: bf.data.AnyDataset, dataset: str, data_dir: Path | None) -> RunConfig:
    """Replace the dataset in the settings of a run; its images are read in the same way."""
    settings: dict[str, object] = {"dataset": dataset, "data_dir": data_dir and str(data_dir)}
    if isinstance(config, DescentConfig):
        settings["in_memory"] = isinstance(trained, bf.data.Dataset)
    return config.with_settings(**settings)


def _test_images(data: bf.data.AnyDataset, trained: bf.data.AnyDataset) -> bf.data.LabelledImages:
    """Return the test images, normalised like the training images of the network."""
    if isinstance(data, bf.data.Dataset):
        return bf.data.MemoryImages(data.test_images, data.test_labels, trained.mean, trained.std)
    return data.test


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
