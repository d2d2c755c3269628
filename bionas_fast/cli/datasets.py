"""``bionas-fast datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bionas_fast import data
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import print_entry, print_json, print_lines, say


@with_plugins
def list_datasets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Load this dataset and describe it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download the dataset if it is missing.")] = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """List the datasets; with a name, load it, or say where it was looked for and how to get it."""
    if name is not None:
        found = data.load_dataset(name, data_dir, download=download)
        facts = {
            "dataset": name,
            "training images": len(found.labels),
            "test images": len(found.test_labels),
            "image": "×".join(map(str, (found.in_channels, *found.image_size))),
            "classes": found.num_classes,
        }
        if as_json:
            print_json(facts)
        else:
            print_lines({key: str(value) for key, value in facts.items()})
        return
    rows = [_row(known) for known in data.dataset_names()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        size = "" if row["training"] is None else "{training:,} + {test:,} of {image}, {classes} classes".format(**row)
        print_entry(row["dataset"], size, row["description"].replace("``", ""))
    say("bionas-fast datasets NAME looks for it, and says how to get it")


def _row(name: str) -> dict[str, Any]:
    size = data.SIZES.get(name)
    return {
        "dataset": f"{name}…" if name.endswith(":") else name,
        "training": None if size is None else size.images,
        "test": None if size is None else size.test_images,
        "image": None if size is None else "×".join(map(str, size.image)),
        "classes": None if size is None else size.num_classes,
        "description": data.describe_dataset(name).partition("\n")[0],
    }
