"""``bionas-fast show``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bionas_fast import report
from bionas_fast.cli.options import Plugins, with_plugins
from bionas_fast.cli.output import err, out
from bionas_fast.runs.folder import GENOTYPE, RunFolder
from bionas_fast.space import Genotype, published, published_names


@with_plugins
def show(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|GENOTYPE", help="A run folder, a genotype file, or a published genotype's name."),
    ],
    save: Annotated[Path | None, typer.Option(help="Also save the drawing as .svg or .png.")] = None,
    plugins: Plugins = None,
) -> None:
    """Draw a genotype."""
    genotype = read_genotype(source)
    if save is not None:
        report.draw_figure(genotype, save)
        err.print(f"wrote {save}", highlight=False, soft_wrap=True)
    report.draw_genotype(genotype, out)


def read_genotype(source: str | Path) -> Genotype:
    """Read a genotype from its file or from a run folder, or look up a published one; a file of that name counts first.

    Raises:
        InputError: the genotype does not exist or is damaged.
    """
    if source in published_names() and not os.path.exists(source):
        return published(str(source)).genotype
    return Genotype.load(RunFolder.open(source).file(GENOTYPE) if os.path.isdir(source) else source)
