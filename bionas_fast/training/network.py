"""The base of all trainings that end with a network: its result and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bionas_fast import report
from bionas_fast.config import RunRecord
from bionas_fast.data import DataShape
from bionas_fast.evaluation import measure
from bionas_fast.models import NetworkSize, measure_size, weights_by_rule
from bionas_fast.runs.folder import EVALUATION, RunFolder
from bionas_fast.runs.summary import RunFacts
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime import distributed
from bionas_fast.runtime.isolation import exclusive, ordinary_modes
from bionas_fast.space import Genotype
from bionas_fast.training.result import TrainResult


class NetworkTraining(Trainer):
    """The training of a network; a subclass says which.

    Attributes:
        name: the name of the network in displays.
        genotype: the genotype of the network, if it has one.
    """

    trains_network = True
    name: str
    genotype: Genotype | None = None

    @property
    def trained(self) -> nn.Module:
        """The network that is tested."""
        return self.net

    def describe(self) -> dict[str, str]:
        weights = weights_by_rule(self.trained)
        total = sum(weights.values())
        shares = ", ".join(f"{rule} {100 * own / total:.1f} %" for rule, own in weights.items())
        return {"network": f"{self.name}, {total:,} weights: {shares}", **super().describe()}

    def size(self) -> NetworkSize:
        """Measure the size of the network on the images of the run."""
        return measure_size(self.trained, (self.data.in_channels, *self.data.image_size))

    def operations(self) -> int:
        return self.size().operations

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
        self.write_config(folder, network=DataShape.of(self.data).entries())

    def write_report(self, folder: RunFolder) -> None:
        images = self.data.test
        # Of several processes, only this one is here; it can measure images in memory alone.
        if distributed.world_size() == 1 or not images.divided:
            folder.write(EVALUATION, measure(self.trained, images).to_json())
        speed = {"speed": f"{self.images_per_second():,.0f} images/s"}
        report.write_report(folder.path, facts=_facts(self.size(), speed))

    @classmethod
    def facts(cls, folder: RunFolder, record: RunRecord) -> RunFacts:
        shape = DataShape.read(record)
        with ordinary_modes(), exclusive():
            network = cls.load_network(folder, record)
        return _facts(measure_size(network, (shape.in_channels, *shape.image_size)))


def _facts(size: NetworkSize, lines: Mapping[str, str] | None = None) -> RunFacts:
    sizes = {name: line for name, line in size.lines().items() if name != "weights by rule"}
    return RunFacts({**sizes, **(lines or {})}, size.shares)
