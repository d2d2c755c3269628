"""Labelled images in memory: :class:`Dataset`, its statistics and checks."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from bionas_fast.data.batches import MemoryImages, check_range
from bionas_fast.errors import InputError

#: A summary lists this many class names.
LISTED = 10

#: Pixels counted at a time.
HISTOGRAM = 2**24

#: A channel with a smaller standard deviation is constant; values of [0, 1] have a rounding of 6e-8 in float32.
CONSTANT = 1e-7


@dataclass(frozen=True)
class Source:
    """Origin of a dataset, in words for its summary.

    Attributes:
        classes: names of the classes, in the order of their labels.
        taken: how the images were taken, such as the folders of the split.
        left_out: what was found and not used, with its number, such as ``"hidden files (3)"``.
    """

    classes: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory.

    Attributes:
        name: name under which :func:`load_dataset` finds it.
        images: training images [N, C, H, W]: uint8, a quarter of the memory, or float32 in [0, 1]. Batches
            are float32 either way.
        labels: int64 [N], from 0 to num_classes - 1.
        test_images: [M, C, H, W], in the format of ``images``.
        test_labels: int64 [M].
        num_classes: number of classes, including classes without images.
        mean: mean of the training images, one value per channel, in units of [0, 1].
        std: standard deviation of the training images, one value per channel, in units of [0, 1].
        source: what was read, for messages.

    Raises:
        InputError: a tensor does not have the shape, dtype or range above, or mean and std are no statistics.
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: Source = field(default_factory=Source, repr=False)

    def __post_init__(self) -> None:
        for prefix, images, labels in (
            ("", self.images, self.labels),
            ("test_", self.test_images, self.test_labels),
        ):
            _check_images(images, f"dataset {self.name!r}: {prefix}images")
            _check_labels(labels, len(images), self.num_classes, f"dataset {self.name!r}: {prefix}labels")
        if self.images.shape[1:] != self.test_images.shape[1:]:
            shapes = f"{list(self.images.shape)} and test_images {list(self.test_images.shape)}"
            raise InputError(f"dataset {self.name!r}: images {shapes} must agree in [C, H, W]")
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise InputError(f"dataset {self.name!r}: mean and std need {self.in_channels} values, one per channel")
        if not all(map(isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            statistics = f"mean {self.mean} and std {self.std}"
            raise InputError(f"dataset {self.name!r}: {statistics} must be finite, and std greater than 0")

    @classmethod
    def from_tensors(
        cls,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        num_classes: int | None = None,
        source: Source | None = None,
    ) -> Dataset:
        """Create a dataset from (images, labels) pairs; mean and std are computed from the training images.

        Args:
            name: name of the dataset.
            train: images [N, C, H, W], uint8 or float32 in [0, 1], and labels int64 [N].
            test: images [M, C, H, W] and labels int64 [M], in the same format.
            num_classes: number of classes; by default the largest training label + 1.
            source: what was read, for messages.

        Raises:
            InputError: a tensor does not have the shape, dtype or range required by :class:`Dataset`.
        """
        images, labels = train
        _check_images(images, f"dataset {name!r}: images")
        if num_classes is None:
            num_classes = int(labels.max()) + 1 if labels.numel() else 0
        mean, std = _statistics(images)
        return cls(name, images, labels, *test, num_classes, mean, std, source or Source())

    @property
    def train(self) -> MemoryImages:
        """The training images, normalised by mean and std."""
        return MemoryImages(self.images, self.labels, self.mean, self.std)

    @property
    def test(self) -> MemoryImages:
        """The test images, normalised like the training images."""
        return MemoryImages(self.test_images, self.test_labels, self.mean, self.std)

    def summary(self) -> str:
        """Describe the dataset in one line: images, classes, split, and what was left out."""
        sizes = (len(self.labels), len(self.test_labels))
        return summarise(self.name, sizes, self.num_classes, "×".join(map(str, self.images.shape[1:])), self.source)

    def checksum(self) -> int:
        """Compute a CRC-32 checksum of all images and labels."""
        number = 0
        for tensor in (self.images, self.labels, self.test_images, self.test_labels):
            number = zlib.crc32(tensor.contiguous().numpy().data, number)
        return number

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of an image."""
        return self.images.shape[2], self.images.shape[3]


def summarise(name: str, sizes: tuple[int, int], num_classes: int, form: str, source: Source) -> str:
    """Describe a dataset in one line.

    Args:
        name: its name.
        sizes: numbers of training and test images.
        num_classes: number of classes.
        form: the form of the images.
        source: what was read.
    """
    names = source.classes
    listed = f" ({', '.join(names[:LISTED])}{', …' if len(names) > LISTED else ''})" if names else ""
    parts = [
        f"dataset {name!r}: {sizes[0]} training and {sizes[1]} test images",
        f"{num_classes} classes{listed}",
        form,
        *source.taken,
    ]
    left_out = f"; not used: {', '.join(source.left_out)}" if source.left_out else ""
    return ", ".join(parts) + left_out


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and standard deviation of each channel of [N, C, H, W], in units of [0, 1]."""
    if images.dtype == torch.uint8:
        # From the histogram: exact, and without a float copy of the dataset.
        level = torch.arange(256, dtype=torch.float64) / 255
        channels = [_histogram(channel).double() for channel in images.unbind(1)]
        means = [float(count @ level / count.sum()) for count in channels]
        variances = [
            float(count @ (level - m).square() / count.sum()) for count, m in zip(channels, means, strict=True)
        ]
    else:
        pixels = images.double().transpose(0, 1).flatten(1)
        means, variances = pixels.mean(1).tolist(), pixels.var(1, correction=0).tolist()
    # A channel that is constant in float32 is only shifted: its standard deviation is 0 or the rounding of its mean.
    return tuple(means), tuple(v**0.5 if v > CONSTANT**2 else 1.0 for v in variances)


def _histogram(values: Tensor) -> Tensor:
    """Count the values of uint8 [N, H, W], a few images at a time: bincount makes int64 of what it counts."""
    rows = max(1, HISTOGRAM // values[0].numel())
    return sum(
        (torch.bincount(some.flatten(), minlength=256) for some in values.split(rows)),
        start=torch.zeros(256, dtype=torch.int64),
    )


def _check_images(images: Tensor, what: str) -> None:
    if images.ndim != 4 or not images.numel():
        raise InputError(f"{what} must be [N, C, H, W] and not empty, not {list(images.shape)}")
    if images.dtype not in (torch.uint8, torch.float32):
        raise InputError(f"{what} must be uint8 or float32, not {images.dtype}")
    if images.is_floating_point():
        check_range(images, what)


def _check_labels(labels: Tensor, count: int, num_classes: int, what: str) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(f"{what} must be int64 [{count}], one per image, not {labels.dtype} {list(labels.shape)}")
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise InputError(f"{what} must be 0 to {num_classes - 1}, not {low} to {high}")
