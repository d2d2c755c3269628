"""Reader of the IDX format (MNIST, Fashion-MNIST), http://yann.lecun.com/exdb/mnist.

torchvision's reader reads uncompressed files only and validates with ``assert``; this one also reads ``.gz`` and
names the faulty file.
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bionas_fast.errors import InputError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped.

    Args:
        path: the file; one that ends in ``.gz`` is decompressed.
        ndim: the required number of dimensions: 3 for images [N, H, W], 1 for labels [N].

    Returns:
        uint8, of the shape in the file's header.

    Raises:
        InputError: the file cannot be read, is not such an array, or its length differs from its header.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error

    # Four bytes of magic (0, 0, type, dimensions), then each dimension as a big-endian 32-bit integer.
    magic = bytes((0, 0, UNSIGNED_BYTE, ndim))
    header = 4 + 4 * ndim
    if content[:4] != magic:
        raise InputError(
            f"{path}: not an IDX file of {ndim}-dimensional bytes: "
            f"it begins with {content[:4].hex() or 'nothing'}, not {magic.hex()}"
        )
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if len(content) != header + prod(shape):
        raise InputError(
            f"{path}: truncated or damaged: expected {header + prod(shape)} bytes, "
            f"{shape} after a header of {header}, got {len(content)}"
        )
    if not prod(shape):
        raise InputError(f"{path}: empty: its shape is {shape}")
    # A bytearray, because a tensor over immutable bytes is undefined behaviour once written to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
