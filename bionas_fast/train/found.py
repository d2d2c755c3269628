"""Training of found networks, and the comparison of their learning rules with single ones."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.config import Config
from bionas_fast.data import Augment, BatchStream, Dataset, load_dataset
from bionas_fast.device import resolve_device
from bionas_fast.errors import InputError
from bionas_fast.evaluate import evaluate
from bionas_fast.models import FoundNetwork, build_network
from bionas_fast.progress import Progress
from bionas_fast.runs import GENOTYPE, RunFolder
from bionas_fast.space import Genotype
from bionas_fast.train.result import TrainResult

FOUND = "found"


class TrainConfig(Config):
    """Everything that decides a training run; the defaults are sized for the embedded digits on two processor cores.

    The optimiser is that of DARTS's evaluation networks: SGD, cosine schedule to 0, momentum 0.9, weight decay 3e-4,
    gradients clipped at norm 5.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    channels: int = Field(8, ge=1)
    cells: int = Field(3, ge=1)
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"

    learning_rate: float = Field(0.025, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(3e-4, ge=0)
    gradient_clip: float = Field(5.0, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    #: The weight of the auxiliary head's loss; 0 for no such head.
    auxiliary_weight: float = Field(0.0, ge=0)
    #: The chance to drop a path, rising linearly from 0 to this.
    drop_path: float = Field(0.0, ge=0, lt=1)
    flip: bool = False
    crop_padding: int = Field(0, ge=0)
    cutout: int = Field(0, ge=0)

    def settings(self) -> dict[str, Any]:
        """Plain values, as they are written to a file."""
        return self.model_dump(mode="json")


def train(
    genotype: Genotype,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> TrainResult[FoundNetwork]:
    """Train the network of a genotype from scratch and test it.

    Args:
        genotype: what to train.
        config: the settings; by default the embedded digits.
        out: a run folder, new or empty; by default nothing is written.
        progress: hears how the training goes.

    Raises:
        InputError: a setting that names nothing, a data set that is not there, a folder that is not empty, a loss that
            is no longer finite.
    """
    config, progress = config or TrainConfig(), progress or Progress()
    device = resolve_device(config.device)
    data = load_dataset(config.dataset, config.data_dir, download=config.download)
    network = _build(genotype, config, data).to(device)
    folder = None if out is None else RunFolder.create(out)
    stream = BatchStream(
        data.images,
        data.labels,
        config.batch_size,
        seed=config.seed,
        augment=Augment(config.flip, config.crop_padding, config.cutout),
        mean=data.mean,
        std=data.std,
        device=device,
    )
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    metrics: list[dict[str, Any]] = []
    if folder is not None:
        folder.write_config("train", config.settings(), network=_shape(data))
        folder.write(GENOTYPE, genotype.to_json())
    progress.start(f"training {genotype.hash}", config.epochs, len(stream))
    try:
        for epoch in range(config.epochs):
            network.drop_path = config.drop_path * epoch / config.epochs
            row = _run_epoch(network, stream, optimizer, config, epoch, progress)
            schedule.step()
            test = evaluate(network, data.test_images, data.test_labels, mean=data.mean, std=data.std)
            row |= {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}
            metrics.append(row)
            if folder is not None:
                folder.write_metrics(metrics)
                folder.write_checkpoint({"network": network.state_dict(), "epoch": epoch + 1})
            progress.epoch(row)
    finally:
        progress.finish()
    return TrainResult(network.eval(), metrics[-1]["test_accuracy"], metrics, None if folder is None else folder.path)


def compare_rules(
    genotype: Genotype,
    config: TrainConfig | None = None,
    *,
    single_rules: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Test accuracy (percent) of the found rules beside the same architecture under each single rule.

    Args:
        single_rules: by default every registered rule, ``bp`` among them.

    Returns:
        ``{"found": …, "bp": …, "fa": …, …}``, each trained alike from the same seed.
    """
    variants = {FOUND: genotype}
    variants |= {rule: genotype.with_rule(rule) for rule in (single_rules or rules.names())}
    return {name: train(variant, config, progress=progress).test_accuracy for name, variant in variants.items()}


def load_found(folder: RunFolder, settings: Mapping[str, Any], shape: Mapping[str, Any]) -> FoundNetwork:
    """The network of a run; see :func:`bionas_fast.load`."""
    config = TrainConfig(**settings)
    return build_network(
        Genotype.load(folder.file(GENOTYPE)),
        channels=config.channels,
        cells=config.cells,
        auxiliary=config.auxiliary_weight > 0,
        in_channels=shape["in_channels"],
        num_classes=shape["num_classes"],
    )


def _shape(data: Dataset) -> dict[str, int]:
    return {"in_channels": data.in_channels, "num_classes": data.num_classes}


def _build(genotype: Genotype, config: TrainConfig, data: Dataset) -> FoundNetwork:
    return build_network(
        genotype,
        channels=config.channels,
        cells=config.cells,
        auxiliary=config.auxiliary_weight > 0,
        seed=config.seed,
        **_shape(data),
    )


def _run_epoch(
    network: FoundNetwork,
    stream: BatchStream,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    progress: Progress,
) -> dict[str, Any]:
    started = time.perf_counter()
    network.train()
    loss_sum, correct, seen = 0.0, 0, 0
    for x, y in stream.epoch():
        output = network(x)
        logits, loss = _loss(output, y, config)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        if not math.isfinite(loss.item()):
            raise InputError(
                f"the loss is {loss.item()} in epoch {epoch + 1}; "
                f"a learning rate below {config.learning_rate:g} may help"
            )
        optimizer.step()
        loss_sum, seen = loss_sum + loss.item() * len(y), seen + len(y)
        correct += int((logits.argmax(dim=1) == y).sum())
        progress.step(loss.item())
    return {
        "epoch": epoch + 1,
        "train_loss": loss_sum / seen,
        "train_accuracy": 100 * correct / seen,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "seconds": time.perf_counter() - started,
    }


def _loss(output: Tensor | tuple[Tensor, Tensor], y: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    logits, *auxiliary = output if isinstance(output, tuple) else (output,)
    loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
    for extra in auxiliary:
        loss = loss + config.auxiliary_weight * F.cross_entropy(extra, y, label_smoothing=config.label_smoothing)
    return logits, loss
