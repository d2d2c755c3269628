"""Training of plain networks, by any of the trainers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from bionas_fast.choices import WITHOUT_RULES
from bionas_fast.config import RunRecord
from bionas_fast.data import AnyDataset, Data, DataShape
from bionas_fast.models import ForwardForwardNetwork, build_plain
from bionas_fast.runs.callbacks import Callback
from bionas_fast.runs.completion import completed
from bionas_fast.runs.folder import Out, RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.training.config import PlainConfig
from bionas_fast.training.forward_only import forward_forward, modulation, pepita
from bionas_fast.training.predictive_coding import predictive_coding
from bionas_fast.training.result import TrainResult
from bionas_fast.training.supervised import SupervisedTraining


def train_plain(
    config: PlainConfig | None = None,
    *,
    data: Data | None = None,
    out: Out = None,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult[nn.Module]:
    """Train a perceptron or a small convolutional network, and test it.

    Args:
        config: the settings; by default a perceptron by back-propagation on scikit-learn's digits.
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
        PlainTraining,
        config,
        name=lambda settings: f"{settings.architecture}-{settings.dataset}-{settings.learns_by}-seed{settings.seed}",
        make=lambda settings, _, given: PlainTraining(settings, given),
        data=data,
        out=out,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
    ) as (training, folder):
        return training.result(folder)


class PlainTraining(SupervisedTraining):
    """The training of a plain network."""

    kind = "plain"
    start = staticmethod(train_plain)
    settings = PlainConfig
    config: PlainConfig

    def __init__(self, config: PlainConfig, data: AnyDataset | None = None) -> None:
        def build(data: AnyDataset) -> nn.Module:
            return _build(config, DataShape.of(data))

        super().__init__(config, build, f"{config.architecture} {config.learns_by}", data)
        height, width = self.data.image_size
        pixels, classes = self.data.in_channels * height * width, self.data.num_classes
        #: F of PEPITA, which follows from the settings.
        self.matrix = modulation(pixels, classes, config.modulation, config.seed).to(self.device)

    def backward(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        config, network = self.config, cast("Any", self.net)
        match config.trainer:
            case "pepita":
                loss, logits = pepita(network, self.matrix, images, labels, share)
            case "pc":
                steps, rate = config.inference_steps, config.inference_rate
                loss, logits = predictive_coding(network, images, labels, share, steps=steps, rate=rate)
            case "ff":
                loss, logits = forward_forward(network, images, labels, config.threshold, share)
            case _:
                return super().backward(images, labels, share)
        return share * loss, logits

    @classmethod
    def settings_of_source(cls, source: str) -> Mapping[str, Any]:
        return {"architecture": source}

    @classmethod
    def load_network(cls, folder: RunFolder, record: RunRecord) -> nn.Module:
        return _build(PlainConfig(**record.settings), DataShape.read(record))


def _build(config: PlainConfig, shape: DataShape) -> nn.Module:
    arguments: dict[str, Any] = {
        "widths": config.widths,
        "num_classes": shape.num_classes,
        "in_channels": shape.in_channels,
        "image_size": shape.image_size,
        "seed": config.seed,
    }
    if config.trainer == "ff":
        return ForwardForwardNetwork(config.architecture, **arguments)
    network = build_plain(config.architecture, rule=config.rule, **arguments)
    if config.trainer in WITHOUT_RULES:
        for module in network:
            cast("Any", module).learns_by = "predictive" if config.trainer == "pc" else config.trainer
    return network
