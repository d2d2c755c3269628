"""``bionas-fast show``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import bionas_fast as bf
from bionas_fast import models, report, space
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import out, print_json, print_lines, say
from bionas_fast.config import RunRecord
from bionas_fast.errors import InputError
from bionas_fast.runs.folder import CHECKPOINT, GENOTYPE, RunFolder
from bionas_fast.runs.kinds import get_kind


@with_plugins
def show(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|GENOTYPE", help="A run folder, a genotype file, or a published genotype's name."),
    ],
    save: Annotated[
        Path | None,
        typer.Option(help="Also save the drawing as .svg, .png or .pdf; that of a search with lines by their lead."),
    ] = None,
    cell: Annotated[
        str | None, typer.Option(metavar="KIND", help="Draw this cell alone, such as normal.  [all]")
    ] = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Draw a genotype, and print the size of its network: that of a training, or that of the published evaluation."""
    folder = RunFolder.open(source) if os.path.isdir(source) else None
    record = None if folder is None else folder.read()
    trained = folder is not None and record is not None and get_kind(record.kind).trains_network
    genotype = None
    if not trained or os.path.isfile(os.path.join(source, GENOTYPE)):
        genotype = read_genotype(source)
    elif save is not None:
        raise InputError(f"{source} has no genotype to draw")
    if genotype is not None:
        if save is not None:
            report.draw_figure(genotype, save, cell=cell, leads=_leads(folder, record))
            say(f"wrote {save}")
        if not as_json:
            report.draw_genotype(genotype, out, cell=cell)
            out.print()
    if folder is not None and record is not None and trained:
        network = get_kind(record.kind).trainer.load_network(folder, record)
        from bionas_fast.data import DataShape

        shape = DataShape.read(record)
        image, head = (shape.in_channels, *shape.image_size), {}
    elif genotype is not None:
        channels, cells = genotype.skeleton.published
        network, image = bf.build_network(genotype, channels=channels, cells=cells), (3, 32, 32)
        head = {"network": f"{cells} cells, {channels} channels, images of 32x32 pixels"}
    size = models.measure_size(network, image)
    if as_json:
        drawn = None if genotype is None else json.loads(genotype.to_json())
        sizes = {"parameters": size.parameters, "multiply-adds": size.operations, "weights by rule": size.weights}
        print_json({"genotype": drawn, **head, **sizes})
    else:
        print_lines({**head, **size.lines()})


def _leads(folder: RunFolder | None, record: RunRecord | None) -> Sequence[float]:
    """Return the lead of the candidate on every edge that a search found; none for other genotypes."""
    if folder is None or record is None or record.kind != "search" or not os.path.isfile(folder.path / CHECKPOINT):
        return ()
    from bionas_fast.searching.result import SearchResult

    found = SearchResult.read(folder, record)
    return () if found is None else found.decision.ratios


def read_genotype(source: str | Path) -> bf.Genotype:
    """Read a genotype from its file or from a run folder, or look up a published one; a file of that name counts first.

    Raises:
        InputError: the genotype does not exist or is damaged.
    """
    if source in space.published_names() and not os.path.exists(source):
        return space.published(str(source)).genotype
    return bf.Genotype.load(RunFolder.open(source).file(GENOTYPE) if os.path.isdir(source) else source)
