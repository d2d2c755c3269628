"""A logger for Weights & Biases, an optional dependency: metrics, shares of α, settings, and the cells as an image."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import wandb

from bionas_fast.config import RunConfig
from bionas_fast.report.figure import genotype_figure, render
from bionas_fast.runs.callbacks import Callback, Moment
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.folder import GENOTYPE
from bionas_fast.runs.tensorboard import tag
from bionas_fast.space import Genotype

PROJECT = "bionas-fast"
#: The file of a run folder with the name of its run at Weights & Biases, which a resumed run continues.
IDENTITY = "wandb-id.txt"
#: The image of the cells, in the folder that wandb keeps in the run folder.
_PICTURE = "cells.png"


class WeightsAndBiases(Callback):
    """Writes a run after every epoch.

    Where it goes is decided by the environment: ``WANDB_PROJECT`` (``bionas-fast``), ``WANDB_MODE`` (``offline`` keeps
    everything in the run folder), and the other variables of wandb.

    Args:
        folder: the run folder.
        config: the settings of the run.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._folder, self._config = folder, config

    def on_begin(self, moment: Moment) -> None:
        path = self._folder / IDENTITY
        if not path.exists():
            write_atomic(path, secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._folder.name,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(self._folder),
            config=self._config.settings(),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def on_epoch(self, moment: Moment) -> None:
        row = {tag(name): value for name, value in moment.metrics.items() if isinstance(value, float)}
        shares = {kind: alpha.detach().softmax(-1).flatten().cpu().numpy() for kind, alpha in moment.alphas.items()}
        histograms = {f"alpha/{kind}": wandb.Histogram(values) for kind, values in shares.items()}
        self._run.log({**row, **histograms}, step=moment.epoch)

    def on_end(self, moment: Moment) -> None:
        genotype = self._folder / GENOTYPE
        if genotype.is_file():
            picture = Path(self._run.dir) / _PICTURE
            picture.write_bytes(render(genotype_figure(Genotype.load(genotype)), "png"))
            self._run.log({"cells": wandb.Image(str(picture))}, step=moment.epoch)
        self._run.finish()
