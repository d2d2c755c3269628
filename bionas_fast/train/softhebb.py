"""Training of SoftHebb networks: filters without labels, then a linear head with them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.config import Config
from bionas_fast.data import BatchStream, Dataset, load_dataset
from bionas_fast.device import resolve_device
from bionas_fast.evaluate import evaluate
from bionas_fast.models.softhebb import SoftHebbNetwork, build_softhebb
from bionas_fast.nn import frozen_plasticity
from bionas_fast.progress import Progress
from bionas_fast.runs import RunFolder
from bionas_fast.train.result import TrainResult


class SoftHebbConfig(Config):
    """Everything that decides a run; the defaults are those of the publication but for the architecture."""

    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    architecture: Literal["cifar10", "mnist"] = "mnist"
    #: ``random`` keeps the initial filters: what learning them has to beat.
    rule: Literal["softhebb", "hard_wta", "soft_wta", "random"] = "softhebb"
    feature_epochs: int = Field(1, ge=1)
    feature_batch_size: int = Field(10, ge=1)
    #: One block after the other, instead of all with every batch.
    layerwise: bool = False
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    dropout: float = Field(0.5, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"

    def settings(self) -> dict[str, Any]:
        """Plain values, as they are written to a file."""
        return self.model_dump(mode="json")


def train_softhebb(
    config: SoftHebbConfig | None = None, *, out: str | Path | None = None, progress: Progress | None = None
) -> TrainResult[SoftHebbNetwork]:
    """Learn filters without labels and a head with them, and test the network.

    Args:
        config: the settings; by default the embedded digits.
        out: a run folder, new or empty; by default nothing is written.
        progress: hears how the training goes.

    Raises:
        InputError: a setting that names nothing, a data set that is not there, a folder that is not empty, filters that
            are no longer finite.
    """
    config, progress = config or SoftHebbConfig(), progress or Progress()
    device = resolve_device(config.device)
    data = load_dataset(config.dataset, config.data_dir, download=config.download)
    network = _build(config, _shape(data)).to(device)
    folder = None if out is None else RunFolder.create(out)
    if folder is not None:
        folder.write_config("softhebb", config.settings(), network=_shape(data))

    def stream(batch_size: int) -> BatchStream:
        return BatchStream(
            data.images, data.labels, batch_size, seed=config.seed, mean=data.mean, std=data.std, device=device
        )

    if config.rule == "random":
        _settle(network, stream(config.feature_batch_size))
    else:
        _learn_filters(network, config, stream(config.feature_batch_size), progress)
    metrics: list[dict[str, Any]] = []
    optimizer = torch.optim.Adam(network.head.parameters(), config.learning_rate)
    batches = stream(config.batch_size)
    progress.start("linear head", config.epochs, len(batches))
    try:
        for epoch in range(config.epochs):
            row = {"epoch": epoch + 1, **_head_epoch(network, batches, optimizer, progress)}
            test = evaluate(network, data.test_images, data.test_labels, mean=data.mean, std=data.std)
            row |= {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}
            metrics.append(row)
            if folder is not None:
                folder.write_metrics(metrics)
                folder.write_checkpoint({"network": network.state_dict(), "epoch": epoch + 1})
            progress.epoch(row)
    finally:
        progress.finish()
    run_dir = None if folder is None else folder.path
    return TrainResult(network.eval(), metrics[-1]["test_accuracy"], metrics, run_dir)


def load_softhebb(folder: RunFolder, settings: Mapping[str, Any], shape: Mapping[str, Any]) -> SoftHebbNetwork:
    """The network of a run; see :func:`bionas_fast.load`."""
    return _build(SoftHebbConfig(**settings), shape)


def _shape(data: Dataset) -> dict[str, Any]:
    return {
        "in_channels": data.in_channels,
        "num_classes": data.num_classes,
        "image_size": list(data.images.shape[-2:]),
    }


def _build(config: SoftHebbConfig, shape: Mapping[str, Any]) -> SoftHebbNetwork:
    rule = "softhebb" if config.rule == "random" else config.rule
    return build_softhebb(config.architecture, rule=rule, dropout=config.dropout, seed=config.seed, **shape)


@torch.no_grad()
def _learn_filters(network: SoftHebbNetwork, config: SoftHebbConfig, stream: BatchStream, progress: Progress) -> None:
    phases = [[block] for block in network.blocks] if config.layerwise else [list(network.blocks)]
    epochs = config.feature_epochs * len(phases)
    progress.start("filters, without labels", epochs, len(stream))
    network.eval()
    try:
        for phase in phases:
            for block in phase:
                block.train()
            for _ in range(config.feature_epochs):
                for x, _labels in stream.epoch():
                    _pass(network, x, phase)
                    progress.step()
            for block in phase:
                block.eval()
    finally:
        progress.finish()


def _pass(network: SoftHebbNetwork, x: Tensor, phase: list[nn.Module]) -> None:
    """Through the blocks up to the last that learns."""
    for block in network.blocks:
        x = block(x)
        if block is phase[-1]:
            return


@torch.no_grad()
def _settle(network: SoftHebbNetwork, stream: BatchStream) -> None:
    """Give the normalisations their statistics and leave the filters as they are."""
    network.train()
    with frozen_plasticity(network):
        for x, _labels in stream.epoch():
            network.features(x)


def _head_epoch(
    network: SoftHebbNetwork, stream: BatchStream, optimizer: torch.optim.Optimizer, progress: Progress
) -> dict[str, Any]:
    started = time.perf_counter()
    network.eval()
    network.head.train()
    loss_sum, correct, seen = 0.0, 0, 0
    for features, y in _features(network, stream):
        logits = network.head(features)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum, seen = loss_sum + loss.item() * len(y), seen + len(y)
        correct += int((logits.argmax(dim=1) == y).sum())
        progress.step(loss.item())
    return {
        "train_loss": loss_sum / seen,
        "train_accuracy": 100 * correct / seen,
        "seconds": time.perf_counter() - started,
    }


def _features(network: SoftHebbNetwork, stream: BatchStream) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in stream.epoch():
        with torch.no_grad():
            features = network.features(x)
        yield features, y
