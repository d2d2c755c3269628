"""The base of all trainings that end with a network: its result and its report."""

from __future__ import annotations

from typing import Any

from torch import nn

from bionas_fast import report
from bionas_fast.config import RunRecord
from bionas_fast.data import Dataset
from bionas_fast.models import NetworkSize, measure_size, weights_by_rule
from bionas_fast.runs.folder import REPORT, RunFolder
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime.isolation import exclusive, ordinary_modes
from bionas_fast.runtime.machine import machine
from bionas_fast.space import Genotype
from bionas_fast.train.result import TrainResult


def network_shape(data: Dataset) -> dict[str, Any]:
    """Return the arguments of a network that follow from its data: ``in_channels``, ``num_classes``, ``image_size``."""
    return {
        "in_channels": data.in_channels,
        "num_classes": data.num_classes,
        "image_size": list(data.images.shape[-2:]),
    }


class NetworkTraining(Trainer):
    """The training of a network; a subclass says which.

    Attributes:
        name: the name of the network in the report.
        genotype: the genotype of the network, if it has one.
    """

    command = "train"
    trains_network = True
    name: str
    genotype: Genotype | None = None

    @property
    def trained(self) -> nn.Module:
        """The network that is tested."""
        return self.net

    def size(self) -> NetworkSize:
        """Measure the size of the network on the images of the run."""
        return measure_size(self.trained, tuple(self.data.images.shape[1:]))

    def images_per_second(self) -> float:
        """Return the training images per second in the epochs with metrics, which include the tests."""
        images = sum(p.epochs * len(p.batches) * p.batches.batch_size for p in self.phases if p.counted)
        return images / sum(row["seconds"] for row in self.metrics)

    def result(self, folder: RunFolder | None) -> TrainResult[Any]:
        """Return the result of the finished training."""
        return TrainResult(
            network=self.trained.eval(),
            test_accuracy=self.metrics[-1]["test_accuracy"],
            metrics=self.metrics,
            run_dir=None if folder is None else folder.path,
            size=self.size(),
            images_per_second=self.images_per_second(),
        )

    @classmethod
    def share_of_bp(cls, folder: RunFolder, record: RunRecord) -> float:
        with ordinary_modes(), exclusive():
            weights = weights_by_rule(cls.load_network(folder, record))
        return 100 * weights.get("bp", 0) / sum(weights.values())

    def write_beginning(self, folder: RunFolder) -> None:
        self.write_config(folder, network=network_shape(self.data))

    def write_report(self, folder: RunFolder) -> None:
        report.write_training_report(
            folder.path / REPORT,
            name=self.name,
            genotype=self.genotype,
            config={**self.config.settings(), "plugins": self.config.plugins},
            metrics=self.metrics,
            machine=machine(),
            summary=self.result(folder).lines(),
        )
