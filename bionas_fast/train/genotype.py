"""Training of genotype networks, and comparison of their learning rules with single ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.config import Cells, Channels, Coefficient, DescentConfig, Epochs, RunRecord, SkipRules
from bionas_fast.data import Augment, BatchStream, Dataset, load_dataset
from bionas_fast.errors import InputError, NotFinite
from bionas_fast.evaluate import evaluate
from bionas_fast.models import GenotypeNetwork, build_network
from bionas_fast.nn import synchronise_statistics
from bionas_fast.plugins import import_plugins
from bionas_fast.runs.execution import execute
from bionas_fast.runs.folder import GENOTYPE, NewFolder, RunFolder
from bionas_fast.runs.kinds import register_kind
from bionas_fast.runs.memory import expect_memory
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.resume import open_run
from bionas_fast.runs.schedule import cosine
from bionas_fast.runs.trainer import Phase, Trainer
from bionas_fast.runtime import distributed
from bionas_fast.runtime.device import resolve_device
from bionas_fast.space import Genotype
from bionas_fast.train.result import TrainResult

#: Key of the unchanged genotype in a comparison.
GENOTYPE_RULES = "genotype"


class TrainConfig(DescentConfig):
    """The settings of a training run. The defaults suit scikit-learn's digits on two CPU cores.

    The optimiser is that of the evaluation networks of DARTS: SGD, cosine schedule to 0, momentum 0.9, weight decay
    3e-4, gradients clipped at norm 5.
    """

    epochs: Epochs = 20
    channels: Channels = 8
    cells: Cells = 3
    skip_rules: SkipRules = True
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Fraction of each label spread over all classes.")
    auxiliary_weight: Coefficient = Field(
        0.0, description="Weight of the auxiliary head's loss; 0 for no auxiliary head."
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="Final drop-path probability; it rises linearly from 0.")


def train(
    genotype: Genotype | None = None,
    config: TrainConfig | None = None,
    *,
    out: str | Path | NewFolder | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> TrainResult[GenotypeNetwork]:
    """Train the network of a genotype from scratch and test it.

    Args:
        genotype: the architecture and its learning rules; by default those of the resumed run.
        config: the settings; by default for scikit-learn's digits.
        out: a run folder, new or empty; by default nothing is written.
        resume: the folder of an interrupted run to resume. The result is the same as without the interruption; only
            settings that do not affect the result may be changed.
        progress: receives the progress of the training.

    Raises:
        InputError: an unknown name in a setting, a missing dataset, a non-empty folder, a loss that is no longer
            finite; a run that cannot be resumed.
        Interrupted: after Ctrl-C or SIGTERM. The training is saved if it has a folder.
    """
    if genotype is None and resume is None:
        raise InputError("nothing to train: give a genotype, or the folder of a run to resume")

    def make(config: TrainConfig, folder: RunFolder | None) -> Training:
        trained = None if genotype is None else _trained(genotype, config)
        return Training(_genotype_of(trained, folder), config)

    with (
        distributed.process_group(),
        open_run(Training, config, out=out, resume=resume, make=make) as (training, folder),
    ):
        execute(training, folder, progress or Progress())
        return training.result(folder)


def _trained(genotype: Genotype, config: TrainConfig) -> Genotype:
    """Return the genotype with the rules that a configuration trains."""
    return genotype if config.skip_rules else genotype.without_skip_rules()


def _genotype_of(genotype: Genotype | None, folder: RunFolder | None) -> Genotype:
    """Choose the genotype to train: that of the resumed run, if the run was killed after writing it."""
    if folder is None or (genotype is not None and not (folder.path / GENOTYPE).exists()):
        assert genotype is not None
        return genotype
    stored = Genotype.load(folder.file(GENOTYPE))
    if genotype is not None and genotype != stored:
        raise InputError(f"the run {folder.path} trains genotype {stored.hash}, not {genotype.hash}")
    return stored


@register_kind
class Training(Trainer):
    """The training of a genotype network: the network, its data and its optimiser."""

    kind = "train"
    command = "train"
    trains_network = True
    settings = TrainConfig
    metric_names = ("test_loss", "test_accuracy")
    divergence = (*Trainer.divergence, "auxiliary_weight")
    net: GenotypeNetwork

    def __init__(self, genotype: Genotype, config: TrainConfig) -> None:
        super().__init__(config, resolve_device(config.device))
        self.genotype = genotype = _trained(genotype, config)
        self.data = data = load_dataset(config.dataset, config.data_dir, download=config.download)

        def build(channels: int, cells: int) -> GenotypeNetwork:
            return _build(genotype, config.with_settings(channels=channels, cells=cells), data)

        expect_memory(build, config.channels, config.cells, self.device)
        self.net = build(config.channels, config.cells).to(self.device)
        synchronise_statistics(self.net, distributed.synchroniser())
        batches = BatchStream(
            data.images,
            data.labels,
            config.batch_size,
            seed=config.seed,
            augment=Augment(config.flip, config.crop_padding, config.cutout),
            mean=data.mean,
            std=data.std,
            device=self.device,
        )
        distributed.require_divisible(batches.batch_size)
        self.phases = [Phase(f"training {genotype.hash}", config.epochs, batches)]
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def prepare(self) -> None:
        config = self.config
        self.net.train()
        self.optimizer.param_groups[0]["lr"] = cosine(self.epoch, config.epochs, config.learning_rate)

    def train_step(self, x: Tensor, y: Tensor) -> tuple[float, int]:
        x, y = distributed.shard(x, y)
        drop_path = self.config.drop_path * self.epoch / self.config.epochs
        logits, loss = _loss(self.net(x, drop_path), y, self.config)
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(self.net.parameters())
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.config.gradient_clip)
        if not torch.isfinite(norm):
            raise NotFinite(f"the gradient of the training loss ({loss.item():.3g})")
        self.optimizer.step()
        loss_sum, hits = distributed.all_reduce_sum(loss.item(), int((logits.argmax(dim=1) == y).sum()))
        return loss_sum / distributed.world_size(), int(hits)

    def conclude(self) -> dict[str, Any]:
        data = self.data
        test = evaluate(self.net, data.test_images, data.test_labels, mean=data.mean, std=data.std)
        return {"test_loss": test["loss"], "test_accuracy": test["accuracy"]}

    def write_beginning(self, folder: RunFolder) -> None:
        self.write_config(folder, network=_shape(self.data))
        folder.write(GENOTYPE, self.genotype.to_json())

    @classmethod
    def load_network(cls, folder: RunFolder, record: RunRecord) -> GenotypeNetwork:
        config = TrainConfig(**record.settings)
        return build_network(
            Genotype.load(folder.file(GENOTYPE)),
            channels=config.channels,
            cells=config.cells,
            auxiliary=config.auxiliary_weight > 0,
            in_channels=record.network["in_channels"],
            num_classes=record.network["num_classes"],
        )

    def result(self, folder: RunFolder | None) -> TrainResult[GenotypeNetwork]:
        """Return the result of the finished training."""
        run_dir = None if folder is None else folder.path
        return TrainResult(self.net.eval(), self.metrics[-1]["test_accuracy"], self.metrics, run_dir)


def compare_rules(
    genotype: Genotype,
    config: TrainConfig | None = None,
    *,
    single_rules: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Compare the test accuracy (percent) of a genotype with that of its architecture under each single rule.

    Args:
        config: the settings of every training.
        single_rules: the rules to compare; by default every registered rule, including ``bp``.
        progress: receives the progress of the trainings.

    Returns:
        ``{"genotype": …, "bp": …, "fa": …, …}``, all trained with the same settings and seed.
    """
    config = config or TrainConfig()
    import_plugins(config.plugins)  # their rules are also compared
    variants = {GENOTYPE_RULES: genotype}
    variants |= {rule: genotype.with_rule(rule) for rule in (single_rules or rules.names())}
    return {name: train(variant, config, progress=progress).test_accuracy for name, variant in variants.items()}


def _shape(data: Dataset) -> dict[str, int]:
    return {"in_channels": data.in_channels, "num_classes": data.num_classes}


def _build(genotype: Genotype, config: TrainConfig, data: Dataset) -> GenotypeNetwork:
    return build_network(
        genotype,
        channels=config.channels,
        cells=config.cells,
        auxiliary=config.auxiliary_weight > 0,
        seed=config.seed,
        **_shape(data),
    )


def _loss(output: Tensor | tuple[Tensor, Tensor], y: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    logits, *auxiliary = output if isinstance(output, tuple) else (output,)
    loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
    for extra in auxiliary:
        loss = loss + config.auxiliary_weight * F.cross_entropy(extra, y, label_smoothing=config.label_smoothing)
    return logits, loss
