"""``bionas-fast export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import bionas_fast as bf
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import print_json, print_lines


@with_plugins
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE.onnx|FILE.pt2", help="File of ONNX, or of torch.export; it is replaced.")
    ],
    best: Annotated[bool, typer.Option("--best", help="Export best.pt, chosen by held-out images.")] = False,
    normalised: Annotated[
        bool,
        typer.Option(
            "--normalised", help="Leave the normalisation out: expect normalised images, not those in [0, 1]."
        ),
    ] = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Export a trained network for programs without this package: images [N, C, H, W] to logits, for any N."""
    found = bf.export(run, file, best=best, normalised=normalised, plugins=plugins or ())
    height, width = found["image_size"]
    accuracy = found["test_accuracy"]
    if as_json:
        print_json({"file": str(file), **found})
        return
    print_lines(
        {
            "file": f"{file} ({file.stat().st_size / 1e6:,.1f} MB)",
            "input": f"images [N, {found['in_channels']}, {height}, {width}], float32: {found['input']}",
            "output": f"logits [N, {found['num_classes']}]",
            "test accuracy": "–" if accuracy is None else f"{accuracy:.2f} %",
        }
    )
