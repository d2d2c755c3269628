"""The base of all trainings that end with a network: its result and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bionas_fast import report
from bionas_fast.config import RunRecord
from bionas_fast.data import AnyDataset
from bionas_fast.errors import InputError
from bionas_fast.evaluation import measure
from bionas_fast.models import NetworkSize, measure_size, weights_by_rule
from bionas_fast.runs.folder import EVALUATION, RunFolder
from bionas_fast.runs.summary import RunFacts
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime import distributed
from bionas_fast.runtime.isolation import exclusive, ordinary_modes
from bionas_fast.space import Genotype
from bionas_fast.training.result import TrainResult


@dataclass(frozen=True)
class DataShape:
    """Properties of the data that a network depends on; recorded with the run, so that the data are not needed later.

    Attributes:
        in_channels: channels of an image.
        num_classes: number of classes.
        image_size: (H, W) of a training image.
        mean, std: statistics of the training images by which images are normalised, one value per channel, in units of
            [0, 1].
        classes: names of the classes, in the order of their labels; empty if they have none.
    """

    in_channels: int
    num_classes: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: AnyDataset) -> DataShape:
        """Take the shape of a dataset."""
        return cls(data.in_channels, data.num_classes, data.image_size, data.mean, data.std, data.source.classes)

    @classmethod
    def read(cls, record: RunRecord) -> DataShape:
        """Read the shape from the record of a run.

        Raises:
            InputError: it is missing or damaged.
        """
        entries = record.network if isinstance(record.network, Mapping) else {}
        size, mean, std, names = (_listed(entries.get(name)) for name in ("image_size", "mean", "std", "classes"))
        channels, classes, *size = (entries.get("in_channels"), entries.get("num_classes"), *size)
        fits = (
            len(size) == 2
            and all(type(number) is int and number > 0 for number in (channels, classes, *size))
            and len(mean) == len(std) == channels
            and all(type(value) is float and math.isfinite(value) for value in (*mean, *std))
            and min(std) > 0
            and all(isinstance(name, str) for name in names)
        )
        if not fits:
            raise InputError(
                f"{record.path}: network: expected in_channels, num_classes, image_size, mean and std of the images"
            )
        assert isinstance(channels, int) and isinstance(classes, int)
        return cls(channels, classes, (size[0], size[1]), tuple(mean), tuple(std), tuple(names))

    def entries(self) -> dict[str, Any]:
        """Return plain values for the record of a run."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


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
