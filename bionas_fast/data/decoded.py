"""Images decoded once and kept, scaled, in one file that is mapped into memory: :func:`decoded`."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bionas_fast.data.file_stream import Source
from bionas_fast.data.loading import default_workers, load
from bionas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

#: The end of a complete file: number of images, size of their pixels, CRC-32 of their sizes, and this word.
_END = struct.Struct("<QQI12s")
_WORD = b"bionas-fast1"
#: Images that a worker process decodes at once.
_CHUNK = 64


class SourceFiles(Source, Protocol):
    """Images whose files can be recognised."""

    def fingerprint(self, *, times: bool = False) -> int:
        """Compute a checksum of their names, sizes and labels, and optionally of the times of the last changes."""


logger = logging.getLogger("bionas_fast.data")


class Decoded:
    """Images of a file of :func:`decoded`.

    The pixels, uint8 [H, W, 3], lie one image after the other; they are followed by the sizes, int32 [N, 2], and
    :data:`_END`.

    Args:
        path: the file.
        labels: int64 [n].
        indices: int64 [n], the images of the file.

    Raises:
        InputError: the file is incomplete or damaged.
    """

    def __init__(self, path: Path, labels: Tensor, indices: np.ndarray) -> None:
        self.path, self.labels = path, labels
        self._indices = indices
        self._open()

    def _open(self) -> None:
        self._sizes = _read_sizes(self.path)
        pixels = self._sizes.astype(np.int64).prod(1) * 3
        self._starts = np.concatenate([np.zeros(1, np.int64), pixels.cumsum()])
        self._pixels = np.memmap(self.path, np.uint8, "r", shape=(int(self._starts[-1]),))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "labels": self.labels, "_indices": self._indices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def take(self, indices: Tensor) -> Decoded:
        """Select images, in the order of ``indices``, int64 [n]."""
        return Decoded(self.path, self.labels[indices], self._indices[indices.numpy()])

    def image(self, index: int) -> Image.Image:
        """Return an image, RGB."""
        from PIL import Image

        number = self._indices[index]
        height, width = self._sizes[number]
        pixels = self._pixels[self._starts[number] : self._starts[number + 1]]
        return Image.fromarray(pixels.reshape(height, width, 3))


def decoded(files: SourceFiles, size: int, folder: Path, workers: int | None = None) -> Decoded:
    """Return images decoded and scaled to a shorter side of ``size`` pixels, by torchvision's ``Resize``.

    They are decoded on the first call and kept in ``folder``, under a name that follows from the names, sizes, times
    and labels of the files. The file is complete or missing, also after a process that wrote it was killed; one process
    writes it while others wait.

    Args:
        files: the images.
        size: in pixels.
        folder: it is created if necessary.
        workers: number of processes that decode; None for :func:`default_workers`.

    Raises:
        InputError: an image cannot be read, or the folder not be written.
    """
    path = folder / f"decoded-{size}-{files.fingerprint(times=True):08x}.bin"
    if not path.exists():
        from filelock import FileLock

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():  # another process may have written it meanwhile
                    logger.info("decoding %d images once, into %s", len(files.labels), path)
                    draft = path.with_suffix(".part")
                    with open(draft, "wb") as file:
                        _write(file, files, size, default_workers() if workers is None else workers)
                        file.flush()
                        os.fsync(file.fileno())
                    draft.replace(path)
        except OSError as error:
            raise InputError(f"decoded_dir: {path} cannot be written: {error.strerror or error}") from error
    return Decoded(path, files.labels, np.arange(len(files.labels)))


def _write(file: IO[bytes], files: SourceFiles, size: int, workers: int) -> None:
    orders = torch.arange(len(files.labels)).split(_CHUNK)
    sizes = []
    for pixels, shapes in load(_Scaled(files, size), (order.tolist() for order in orders), workers):
        file.write(pixels.numpy().data)
        sizes.append(shapes.numpy())
    table = np.concatenate(sizes)
    file.write(table.tobytes())
    file.write(_END.pack(len(table), _bytes(table), zlib.crc32(table.tobytes()), _WORD))


def _bytes(sizes: np.ndarray) -> int:
    """Compute the bytes of RGB images of these heights and widths, int32 [N, 2]."""
    return 3 * int(sizes.astype(np.int64).prod(1).sum())


@dataclass(frozen=True)
class _Scaled:
    """Decodes and scales images: their pixels, uint8, one after the other, and their sizes, int32 [n, 2]."""

    source: Source
    size: int

    def read(self, order: list[int]) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2  # slow to import

        resize = v2.Resize(self.size)
        images = [torch.from_numpy(np.array(resize(self.source.image(index)))) for index in order]
        shapes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
        return torch.cat([image.flatten() for image in images]), shapes


def _read_sizes(path: Path) -> np.ndarray:
    """Read the heights and widths, int32 [N, 2]."""
    try:
        with open(path, "rb") as file:
            total = file.seek(0, os.SEEK_END)
            file.seek(max(0, total - _END.size))
            count, pixels, checksum, word = _END.unpack(file.read(_END.size).rjust(_END.size, b"\0"))
            if word == _WORD and total == pixels + 8 * count + _END.size:
                file.seek(pixels)
                table = file.read(8 * count)
                sizes = np.frombuffer(table, np.int32).reshape(-1, 2)
                if zlib.crc32(table) == checksum and _bytes(sizes) == pixels:
                    return sizes
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise InputError(f"{path}: incomplete or damaged; remove it, and it is made again")
