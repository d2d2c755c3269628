"""Sizes of the known datasets, and ``noise:NAME``, random images in the form of another dataset."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from bionas_fast.data import memory
from bionas_fast.data.dataset import Dataset
from bionas_fast.data.registry import load_dataset, register_dataset
from bionas_fast.errors import InputError

_IMAGES = ",images="


class DatasetSize(NamedTuple):
    """The size of a dataset.

    Attributes:
        images: number of training images.
        test_images: number of test images.
        image: (C, H, W) of an image as a network sees it.
        num_classes: number of classes.
    """

    images: int
    test_images: int
    image: tuple[int, int, int]
    num_classes: int


#: Published sizes of datasets, which need not be present.
SIZES = {
    "digits": DatasetSize(1_437, 360, (1, 8, 8), 10),
    "mnist": DatasetSize(60_000, 10_000, (1, 28, 28), 10),
    "fashion-mnist": DatasetSize(60_000, 10_000, (1, 28, 28), 10),
    "kmnist": DatasetSize(60_000, 10_000, (1, 28, 28), 10),
    "svhn": DatasetSize(73_257, 26_032, (3, 32, 32), 10),
    "cifar10": DatasetSize(50_000, 10_000, (3, 32, 32), 10),
    "cifar100": DatasetSize(50_000, 10_000, (3, 32, 32), 100),
    "stl10": DatasetSize(5_000, 8_000, (3, 96, 96), 10),
    "imagenet16-120": DatasetSize(151_700, 6_000, (3, 16, 16), 120),
    "tiny-imagenet": DatasetSize(100_000, 10_000, (3, 64, 64), 200),
    "imagenet": DatasetSize(1_281_167, 50_000, (3, 224, 224), 1_000),
}


def dataset_size(name: str, data_dir: str | Path | None = None) -> DatasetSize:
    """Return the size of a dataset; one that is not among :data:`SIZES` is loaded.

    Raises:
        InputError: as of :func:`load_dataset`.
    """
    if name in SIZES:
        return SIZES[name]
    data = load_dataset(name, data_dir)
    return DatasetSize(len(data.labels), len(data.test_labels), (data.in_channels, *data.image_size), data.num_classes)


@register_dataset("noise:")
def noise(argument: str, data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Random uint8 images in the form of another dataset: ``noise:cifar10``, or fewer, ``noise:cifar10,images=512``.

    For measuring and for trying settings without the data. With a number of images there are as many test images, but
    no more than the other dataset has.

    Raises:
        InputError: an unknown dataset, or a number of images that is none.
    """
    name, given, number = argument.partition(_IMAGES)
    if given and not (number.isdecimal() and 1 <= int(number) <= 10**7):
        raise InputError(f"dataset 'noise:{argument}': expected a number after {_IMAGES!r}, got {number!r}")
    size = dataset_size(name, data_dir)
    counts = (int(number), min(int(number), size.test_images)) if given else (size.images, size.test_images)
    memory.require(sum(counts) * prod(size.image), f"the images of dataset 'noise:{argument}'")
    generator = torch.Generator().manual_seed(seed)
    parts = [
        (
            torch.randint(256, (count, *size.image), generator=generator, dtype=torch.uint8),
            torch.arange(count) % size.num_classes,
        )
        for count in counts
    ]
    return Dataset.from_tensors(f"noise:{argument}", *parts, num_classes=size.num_classes)
