"""Labelled images that stay in their files: :class:`FileDataset`."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from bionas_fast.data.dataset import Dataset, Source, summarise
from bionas_fast.data.decoded import decoded
from bionas_fast.data.file_stream import MEAN, STD, FileImages, Views
from bionas_fast.data.files import default_folder
from bionas_fast.data.images import read_image
from bionas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


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
        """Update a CRC-32 with names, sizes and labels, and optionally the times of the last changes.

        Raises:
            InputError: a file is missing.
        """
        for index, name in enumerate(self._names):
            path = self.path(index)
            try:
                status = os.stat(path)
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
            changed = status.st_mtime_ns if times else 0
            number = zlib.crc32(f"{status.st_size} {changed}".encode(), zlib.crc32(bytes(name), number))
        return zlib.crc32(self.labels.numpy().data, number)


@dataclass(frozen=True)
class Reading:
    """The settings by which images are read from files.

    Attributes:
        views: their form in batches.
        workers: number of processes that read them; see :class:`FileImages`.
        decoded_size: shorter side to which images are scaled once and kept decoded, in pixels; 0 decodes them whenever
            they are used.
        decoded_dir: folder of the decoded images; by default that of datasets.
    """

    views: Views = field(default_factory=Views)
    workers: int | None = None
    decoded_size: int = 0
    decoded_dir: Path | None = None


@dataclass(frozen=True, eq=False)
class FileDataset:
    """Labelled images that are decoded batch by batch; what does not fit into memory.

    Attributes:
        name: name under which :func:`open_dataset` finds it.
        train_files: the training images.
        test_files: the test images.
        num_classes: number of classes.
        source: what was read, for messages.
        load: reads all images into memory; None if their sizes differ, as with ImageNet.
        large: whether the images would be too large for :attr:`load` to be the default.
        reading: the settings by which they are read.
    """

    name: str
    train_files: Files = field(repr=False)
    test_files: Files = field(repr=False)
    num_classes: int
    source: Source = field(default_factory=Source, repr=False)
    load: Callable[[], Dataset] | None = field(default=None, repr=False)
    large: bool = True
    reading: Reading = field(default_factory=Reading)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def train(self) -> FileImages:
        """The training images."""
        return self._images(self.train_files)

    @property
    def test(self) -> FileImages:
        """The test images."""
        return self._images(self.test_files)

    def _images(self, files: Files) -> FileImages:
        reading = self.reading
        if not reading.decoded_size:
            return FileImages(files, reading.views, reading.workers)
        folder = reading.decoded_dir or default_folder()
        kept = decoded(files, reading.decoded_size, Path(os.path.expanduser(folder)), reading.workers)
        return FileImages(kept, reading.views, reading.workers)

    @property
    def in_channels(self) -> int:
        """Channels of an image: all are converted to RGB."""
        return 3

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images of batches."""
        return self.reading.views.size, self.reading.views.size

    def read_by(self, reading: Reading) -> FileDataset:
        """Return the dataset with other settings by which it is read."""
        return replace(self, reading=reading)

    def summary(self) -> str:
        """Describe the dataset in one line: images, classes, split, and what was left out."""
        sizes = (len(self.train_files), len(self.test_files))
        form = f"read from files as 3×{'×'.join(map(str, self.image_size))}"
        return summarise(self.name, sizes, self.num_classes, form, self.source)

    def checksum(self) -> int:
        """Compute a CRC-32 checksum of the names and sizes of all files, and of the labels."""
        return self.test_files.fingerprint(self.train_files.fingerprint())


#: A dataset, wherever its images are.
AnyDataset = Dataset | FileDataset
