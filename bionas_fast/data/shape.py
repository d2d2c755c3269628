"""The properties of a dataset that a network depends on, as runs record them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bionas_fast.config import RunRecord
from bionas_fast.data.file_dataset import AnyDataset
from bionas_fast.errors import InputError


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
