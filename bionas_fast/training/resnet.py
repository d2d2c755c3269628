"""Training of residual networks, the baselines with one learning rule on every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bionas_fast.config import RunRecord
from bionas_fast.data import AnyDataset, Data, DataShape
from bionas_fast.models.resnet import build_resnet, residual_blocks
from bionas_fast.runs.callbacks import Callback
from bionas_fast.runs.completion import completed
from bionas_fast.runs.folder import Out, RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.training.config import ResNetConfig
from bionas_fast.training.result import TrainResult
from bionas_fast.training.supervised import SupervisedTraining


def train_resnet(
    config: ResNetConfig | None = None,
    *,
    data: Data | None = None,
    out: Out = None,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult[nn.Module]:
    """Train a residual network with one learning rule on every layer, and test it.

    Args:
        config: the settings; by default ResNet-20 by back-propagation on scikit-learn's digits.
        data: the images, in place of the dataset that the settings name; see :func:`bionas_fast.data.as_dataset`. To
            resume, give them again.
        out: the run folder, new or empty; by default one under ``runs/``, named after the settings and the time. False:
            nothing is written.
        resume: the folder of an interrupted run to resume. The result is the same as without the interruption; only
            settings that do not affect the result may be changed.
        progress: receives the progress of the training; True shows it on stderr.
        callbacks: see the network and the step; see :class:`bionas_fast.Callback`.

    Raises:
        InputError: an unknown name in a setting, a missing dataset, a non-empty folder, a loss that is no longer
            finite; a run that cannot be resumed.
        Interrupted: after Ctrl-C or SIGTERM. The training is saved if it has a folder.
    """
    with completed(
        ResNetTraining,
        config,
        name=lambda settings: f"resnet-{settings.dataset}-{settings.rule}-seed{settings.seed}",
        make=lambda settings, _, given: ResNetTraining(settings, given),
        data=data,
        out=out,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
    ) as (training, folder):
        return training.result(folder)


class ResNetTraining(SupervisedTraining):
    """The training of a residual network."""

    kind = "resnet"
    start = staticmethod(train_resnet)
    settings = ResNetConfig

    def __init__(self, config: ResNetConfig, data: AnyDataset | None = None) -> None:
        def build(data: AnyDataset) -> nn.Module:
            return _build(config, data.in_channels, data.num_classes)

        super().__init__(config, build, f"{config.architecture} {config.rule}", data)

    def blocks(self) -> Sequence[str] | None:
        return residual_blocks(self.net)

    @classmethod
    def settings_of_source(cls, source: str) -> Mapping[str, Any]:
        return {"architecture": source}

    @classmethod
    def load_network(cls, folder: RunFolder, record: RunRecord) -> nn.Module:
        shape = DataShape.read(record)
        return _build(ResNetConfig(**record.settings), shape.in_channels, shape.num_classes)


def _build(config: ResNetConfig, in_channels: int, num_classes: int) -> nn.Module:
    return build_resnet(
        config.architecture,
        rule=config.rule,
        num_classes=num_classes,
        in_channels=in_channels,
        initialisation=config.initialisation,
        seed=config.seed,
    )
