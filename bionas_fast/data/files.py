"""Reader of the IDX format (MNIST, Fashion-MNIST), http://yann.lecun.com/exdb/mnist, and bounded reading of files.

torchvision's reader reads uncompressed files only and validates with ``assert``; this one also reads ``.gz`` and
names the faulty file.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bionas_fast.data import memory
from bionas_fast.errors import InputError

UNSIGNED_BYTE = 0x08
CHUNK = 2**20

#: Deflate compresses to no less than 1/1032 of the size.
DEFLATE_RATIO = 1032


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes."""


@contextmanager
def readable(path: str | Path, what: str) -> Iterator[None]:
    """Report any exception of a reader as an :class:`InputError`: "``path``: cannot be read as ``what``"."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # on a damaged file a reader raises nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as {what}: {reason}") from error


def require_regular(path: Path) -> None:
    """Raise an :class:`InputError` unless ``path`` is a regular file; opening a pipe would wait for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: expected a file, got a folder, a pipe or a device")


def read_up_to(stream: Readable, size: int) -> bytearray:
    """Read at most ``size`` bytes; memory grows with the bytes that exist, not with ``size``."""
    content = bytearray()
    while len(content) < size and (chunk := stream.read(min(CHUNK, size - len(content)))):
        content += chunk
    return content


def read_idx(path: Path, ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped; no more of it than its header announces.

    Args:
        path: the file; one that ends in ``.gz`` is decompressed.
        ndim: the required number of dimensions: 3 for images [N, H, W], 1 for labels [N].

    Returns:
        uint8, of the shape in the file's header.

    Raises:
        InputError: the file cannot be read, is not such an array, its length differs from its header, or it does not
            fit into memory.
    """
    require_regular(path)
    compressed = path.suffix == ".gz"
    what = "a gzipped IDX file" if compressed else "an IDX file"
    with readable(path, what), gzip.open(path) if compressed else open(path, "rb") as file:
        shape = _read_shape(file, path, ndim)
        size, header = prod(shape), 4 + 4 * ndim
        expected = f"expected {header + size} bytes, {shape} after a header of {header}"
        held = os.path.getsize(path)
        if header + size > held * (DEFLATE_RATIO if compressed else 1):
            got = f"{held} compressed ones" if compressed else held
            raise InputError(f"{path}: truncated or damaged: {expected}, got {got}")
        memory.require(size, f"{path}: {shape} bytes")
        content = read_up_to(file, size)
        more = bool(file.read(1))
    if len(content) != size or more:
        got = f"more than {header + size}" if more else header + len(content)
        raise InputError(f"{path}: truncated or damaged: {expected}, got {got}")
    if not size:
        raise InputError(f"{path}: empty: its shape is {shape}")
    # A bytearray, because a tensor over immutable bytes is undefined behaviour once written to.
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def _read_shape(file: Readable, path: Path, ndim: int) -> tuple[int, ...]:
    # Four bytes of magic (0, 0, type, dimensions), then each dimension as a big-endian 32-bit integer.
    magic = bytes((0, 0, UNSIGNED_BYTE, ndim))
    header = read_up_to(file, 4 + 4 * ndim)
    if header[:4] != magic:
        raise InputError(
            f"{path}: not an IDX file of {ndim}-dimensional bytes: "
            f"it begins with {header[:4].hex() or 'nothing'}, not {magic.hex()}"
        )
    if len(header) < 4 + 4 * ndim:
        raise InputError(f"{path}: truncated or damaged: expected a header of {4 + 4 * ndim} bytes, got {len(header)}")
    return tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))


def default_folder() -> Path:
    """Return the default dataset folder: ``bionas-fast`` in ``XDG_CACHE_HOME``, by default in ``~/.cache``."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "bionas-fast"
