"""Labelled images that stay in their files: :class:`FileDataset`."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from bionas_fast.data.dataset import Dataset, Source, summarise
from bionas_fast.data.images import read_image
from bionas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

#: Statistics of ImageNet, in units of [0, 1], by which images from files are normalised.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LabelledImages(Protocol):
    """Images that are decoded one at a time.

    Attributes:
        labels: int64 [N].
    """

    labels: Tensor

    def image(self, index: int) -> Image.Image:
        """Decode an image, RGB and upright."""


class Files:
    """Image files and their labels.

    Args:
        root: folder of the files.
        names: paths below that folder.
        labels: int64 [N].
    """

    def __init__(self, root: Path, names: Sequence[str] | np.ndarray, labels: Tensor) -> None:
        self.root, self.labels = root, labels
        # One array of bytes instead of N objects: worker processes then share its memory.
        self._names = names if isinstance(names, np.ndarray) else np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the path of a file."""
        return self.root / os.fsdecode(bytes(self._names[index]))

    def take(self, indices: Tensor) -> Files:
        """Select files, in the order of ``indices``, int64 [n]."""
        return Files(self.root, self._names[indices.numpy()], self.labels[indices])

    def image(self, index: int) -> Image.Image:
        """Decode an image, RGB and upright.

        Raises:
            InputError: the file is missing or damaged, has more than 8 bits per channel or several frames.
        """
        return read_image(self.path(index))

    def fingerprint(self, number: int = 0, *, times: bool = False) -> int:
        """Update a CRC-32 with names, sizes and labels, and optionally the times of the last changes."""
        for index, name in enumerate(self._names):
            path = self.path(index)
            try:
                status = os.stat(path)
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
            changed = status.st_mtime_ns if times else 0
            number = zlib.crc32(f"{status.st_size} {changed}".encode(), zlib.crc32(bytes(name), number))
        return zlib.crc32(self.labels.numpy().data, number)


@dataclass(frozen=True, eq=False)
class FileDataset:
    """Labelled images that are decoded batch by batch; what does not fit into memory.

    Attributes:
        name: name under which :func:`open_dataset` finds it.
        train: the training images.
        test: the test images.
        num_classes: number of classes.
        source: what was read, for messages.
        load: reads all images into memory; None if their sizes differ, as with ImageNet.
        large: whether the images would be too large for :attr:`load` to be the default.
    """

    name: str
    train: Files = field(repr=False)
    test: Files = field(repr=False)
    num_classes: int
    source: Source = field(default_factory=Source, repr=False)
    load: Callable[[], Dataset] | None = field(default=None, repr=False)
    large: bool = True
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def in_channels(self) -> int:
        """Channels of an image: all are converted to RGB."""
        return 3

    def summary(self) -> str:
        """Describe the dataset in one line: images, classes, split, and what was left out."""
        sizes = (len(self.train), len(self.test))
        return summarise(self.name, sizes, self.num_classes, "read from files in batches", self.source)

    def checksum(self) -> int:
        """Compute a CRC-32 checksum of the names and sizes of all files, and of the labels."""
        return self.test.fingerprint(self.train.fingerprint())
