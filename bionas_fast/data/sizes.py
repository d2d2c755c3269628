"""Sizes of datasets, which need not be present if they are known."""

from __future__ import annotations

from typing import NamedTuple

from bionas_fast.config import RunConfig
from bionas_fast.data.dataset import Dataset
from bionas_fast.data.file_dataset import AnyDataset
from bionas_fast.data.imagenet import IMAGENET, IMAGENET_COUNTS, TINY, TINY_COUNTS
from bionas_fast.data.imagenet16 import COUNTS, NAME
from bionas_fast.data.settings import configured
from bionas_fast.data.small import SMALL, Part


class DatasetSize(NamedTuple):
    """The size of a dataset.

    Attributes:
        images: number of training images.
        test_images: number of test images.
        image: (C, H, W) of an image in a batch.
        num_classes: number of classes.
    """

    images: int
    test_images: int
    image: tuple[int, int, int]
    num_classes: int


#: Published sizes.
SIZES = {
    "digits": DatasetSize(1_438, 359, (1, 8, 8), 10),
    "mnist": DatasetSize(60_000, 10_000, (1, 28, 28), 10),
    "fashion-mnist": DatasetSize(60_000, 10_000, (1, 28, 28), 10),
    "kmnist": DatasetSize(60_000, 10_000, (1, 28, 28), 10),
    "svhn": DatasetSize(73_257, 26_032, (3, 32, 32), 10),
    "cifar10": DatasetSize(50_000, 10_000, (3, 32, 32), 10),
    "cifar100": DatasetSize(50_000, 10_000, (3, 32, 32), 100),
    "stl10": DatasetSize(5_000, 8_000, (3, 96, 96), 10),
    NAME: DatasetSize(*COUNTS, (3, 16, 16), 120),
    TINY: DatasetSize(*TINY_COUNTS, (3, 64, 64), 200),
    IMAGENET: DatasetSize(*IMAGENET_COUNTS, (3, 224, 224), 1_000),
}


def dataset_size(config: RunConfig) -> DatasetSize:
    """Return the size of the dataset of a run; one that is not among :data:`SIZES`, or part of one, is loaded.

    Raises:
        InputError: it cannot be loaded.
    """
    known = SIZES.get(config.dataset)
    if known is not None:
        side = getattr(config, "image_size", 0)
        return known._replace(image=(3, side, side)) if config.dataset == IMAGENET and side else known
    if config.dataset.startswith(SMALL):
        part = Part.parse(config.dataset.removeprefix(SMALL))
        whole = SIZES.get(part.name)
        if whole is not None:
            channels, height, width = whole.image
            image = (channels, height // part.shrink, width // part.shrink)
            return whole._replace(images=part.images, image=image)
    return size_of(configured(config))


def size_of(data: AnyDataset) -> DatasetSize:
    """Return the size of a dataset."""
    counts = (
        (len(data.labels), len(data.test_labels))
        if isinstance(data, Dataset)
        else (len(data.train_files), len(data.test_files))
    )
    return DatasetSize(*counts, (data.in_channels, *data.image_size), data.num_classes)
