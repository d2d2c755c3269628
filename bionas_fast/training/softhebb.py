"""Training of SoftHebb networks: filters without labels, then a linear head with labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.config import RunRecord
from bionas_fast.data import (
    AnyDataset,
    BatchStream,
    Data,
    Dataset,
    DataShape,
    MemoryImages,
    load_dataset,
    normalise,
)
from bionas_fast.errors import InputError, NotFinite
from bionas_fast.evaluation import evaluate
from bionas_fast.models.softhebb import SoftHebbNetwork, build_softhebb
from bionas_fast.nn import frozen_plasticity
from bionas_fast.runs.callbacks import Callback
from bionas_fast.runs.completion import completed
from bionas_fast.runs.folder import Out, RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.trainer import Phase, Step
from bionas_fast.runtime import distributed
from bionas_fast.runtime.device import resolve_device
from bionas_fast.training.config import SoftHebbConfig
from bionas_fast.training.network import NetworkTraining
from bionas_fast.training.result import TrainResult

# Number of images per chunk of features.
_CHUNK = 250


def train_softhebb(
    config: SoftHebbConfig | None = None,
    *,
    data: Data | None = None,
    out: Out = None,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult[SoftHebbNetwork]:
    """Train filters without labels and a linear head with labels, and test the network.

    Args:
        config: the settings; by default for scikit-learn's digits.
        data: the images, in place of the dataset that the settings name; see :func:`bionas_fast.data.as_dataset`. To
            resume, give them again.
        out: the run folder, new or empty; by default one under ``runs/``, named after the settings and the time. False:
            nothing is written.
        resume: the folder of an interrupted run to resume. The result is the same as without the interruption; only
            settings that do not affect the result may be changed.
        progress: receives the progress of the training; True shows it on stderr.
        callbacks: see the network and the step; see :class:`bionas_fast.Callback`.

    Raises:
        InputError: an unknown name in a setting, a missing dataset, a non-empty folder, filters that are no longer
            finite; a run that cannot be resumed.
        Interrupted: after Ctrl-C or SIGTERM. The training is saved if it has a folder.
    """
    distributed.require_single_process("SoftHebb networks learn")
    with completed(
        SoftHebbTraining,
        config,
        name=lambda settings: f"softhebb-{settings.dataset}-{settings.rule}-seed{settings.seed}",
        make=lambda settings, _, given: SoftHebbTraining(settings, _in_memory(given)),
        data=data,
        out=out,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
    ) as (training, folder):
        return training.result(folder)


class SoftHebbTraining(NetworkTraining):
    """The training of a SoftHebb network, in two phases: the filters, then the head."""

    kind = "softhebb"
    single_process = True
    begins_with_images = True
    start = staticmethod(train_softhebb)
    settings = SoftHebbConfig
    metric_names = ("test_loss", "test_accuracy")
    data: Dataset
    net: SoftHebbNetwork

    def __init__(self, config: SoftHebbConfig, data: Dataset | None = None) -> None:
        super().__init__(config, resolve_device(config.device))
        self.name = f"SoftHebb {config.architecture} {config.rule}"
        if data is None:
            data = load_dataset(config.dataset, config.data_dir, download=config.download)
        self.data = data
        self.net = _build(config, DataShape.of(data)).to(self.device)
        blocks = list(self.net.blocks)
        #: Groups of blocks that learn together, one group after the other.
        self.groups = [[block] for block in blocks] if config.layerwise and config.rule != "random" else [blocks]

        def stream(batch_size: int) -> BatchStream:
            return BatchStream(
                data.images, data.labels, batch_size, seed=config.seed, mean=data.mean, std=data.std, device=self.device
            )

        self.filters = Phase(
            "filters, without labels", config.filter_epochs, stream(config.feature_batch_size), counted=False
        )
        #: The images of the head, or their features.
        self.batches = stream(config.batch_size)
        self.phases = [self.filters, Phase("linear head", config.epochs, self.batches)]
        #: The module trained in the epochs of the head: the head on stored features, or the whole network.
        self.reader: nn.Module | None = None
        self.optimizer = torch.optim.Adam(self.net.head.parameters(), config.learning_rate)

    @property
    def group(self) -> list[nn.Module]:
        """The blocks that learn in the current epoch."""
        return self.groups[self.phase_epoch * len(self.groups) // self.filters.epochs]

    def prepare(self) -> None:
        self.net.eval()
        if self.phase is not self.filters:
            if self.reader is None:
                self._begin_head()
            halved = sum(
                self.phase_epoch >= max(1, round(fraction * self.config.epochs)) for fraction in self.config.halve_at
            )
            self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * 0.5**halved
        for module in self.group if self.phase is self.filters else [self.net.head]:
            module.train()

    def train_step(self, x: Tensor, y: Tensor) -> Step:
        if self.phase is self.filters:
            self._filter_step(x)
            return Step(None, None)
        assert self.reader is not None
        logits = self.reader(x)
        loss = F.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Step(loss.detach(), (logits.argmax(dim=1) == y).sum())

    @torch.no_grad()
    def _begin_head(self) -> None:
        """Compute the features, which no longer change, if they fit into memory, and their scale."""
        data, config = self.data, self.config
        self.announce("computing the features of all images")
        shape = next(self._features(data.images[:1])).shape[1:]
        stored = 4 * shape.numel() * (len(data.images) + len(data.test_images)) <= config.feature_memory * 2**30
        features, tests = (
            self._store(images, shape) if stored else images for images in (data.images, data.test_images)
        )
        if config.scale_features:
            chunks = features.split(_CHUNK) if stored else self._features(data.images)
            squares = sum(float(chunk.square().sum(dtype=torch.float64)) for chunk in chunks)
            scale = self.net.scale
            if not math.isfinite(squares):
                raise NotFinite("the mean square of the filters' features", ("rule", "feature_epochs"))
            scale.size.fill_(math.sqrt(squares / (len(data.images) * shape.numel())) or 1.0)
        self.reader = self.net.head if stored else self.net
        self.tests = tests
        self.statistics: dict[str, Any] = {} if stored else {"mean": data.mean, "std": data.std}
        self.batches.show(features, **self.statistics)

    def _store(self, images: Tensor, shape: torch.Size) -> Tensor:
        features = torch.empty(len(images), *shape, device=self.device)
        for chunk, computed in zip(features.split(_CHUNK), self._features(images), strict=True):
            chunk.copy_(computed)
        return features

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the features of ``images``, the input of the head, in chunks."""
        for chunk in images.split(_CHUNK):
            yield self.net.features(normalise(chunk.to(self.device), self.data.mean, self.data.std))

    @torch.no_grad()
    def _filter_step(self, x: Tensor) -> None:
        """Run the blocks up to the last one that learns. With random filters, only the normalisations are updated."""
        with frozen_plasticity(self.net) if self.config.rule == "random" else nullcontext():
            for block in self.net.blocks:
                x = block(x)
                if block is self.group[-1]:
                    return

    def conclude(self) -> dict[str, Any]:
        if self.phase is self.filters:
            return {}
        assert self.reader is not None
        test = evaluate(self.reader, MemoryImages(self.tests, self.data.test_labels, **self.statistics))
        return {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}

    @classmethod
    def load_network(cls, folder: RunFolder, record: RunRecord) -> SoftHebbNetwork:
        return _build(SoftHebbConfig(**record.settings), DataShape.read(record))


def _in_memory(data: AnyDataset | None) -> Dataset | None:
    if data is None or isinstance(data, Dataset):
        return data
    raise InputError("data: SoftHebb networks take images in memory, got a dataset of files")


def _build(config: SoftHebbConfig, shape: DataShape) -> SoftHebbNetwork:
    rule = "softhebb" if config.rule == "random" else config.rule
    return build_softhebb(
        config.architecture,
        rule=rule,
        in_channels=shape.in_channels,
        image_size=shape.image_size,
        num_classes=shape.num_classes,
        dropout=config.dropout,
        seed=config.seed,
    )
