"""Reader of .npz files: headers first, nothing unpickled, nothing allocated that the file does not hold.

The format is that of :mod:`numpy.lib.format`: a zip file of members ``name.npy``, each a header and raw values.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from bionas_fast.data import memory
from bionas_fast.data.files import DEFLATE_RATIO, read_up_to, readable, require_regular
from bionas_fast.errors import InputError

_SUFFIX = ".npy"


@dataclass(frozen=True)
class Header:
    """Header of an array in a file.

    Attributes:
        key: name of the array.
        shape: its shape.
        dtype: its dtype.
        columns: whether the values are stored in Fortran order.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    columns: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.dtype.itemsize


class Archive:
    """An open .npz file. Use :meth:`open`."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self._file = path, file
        self._members = {member.filename.removesuffix(_SUFFIX): member for member in file.infolist()}

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Archive]:
        """Open a file.

        Raises:
            InputError: it cannot be read, or is not a zip file; also in place of any exception within the context.
        """
        require_regular(path)
        with readable(path, "a file"), open(path, "rb"):
            pass
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path}: not an .npz file, or a damaged one")
        with readable(path, "an .npz file"), zipfile.ZipFile(path) as file:
            yield cls(path, file)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._members)

    def headers(self, keys: Sequence[str]) -> list[Header]:
        """Read the headers of arrays.

        Raises:
            InputError: one is not an array, holds Python objects or has not the size that its header announces; or the
                arrays do not fit into memory.
        """
        headers = [self._header(key) for key in keys]
        # Twice, because a conversion copies them.
        memory.require(2 * sum(header.nbytes for header in headers), f"{self.path}: the arrays {', '.join(keys)}")
        return headers

    def read(self, header: Header) -> np.ndarray:
        """Read the values of an array.

        Raises:
            InputError: the file is damaged.
        """
        with self._file.open(self._members[header.key]) as stream:
            _read_header(stream, header.key)
            values = read_up_to(stream, header.nbytes)
            if len(values) != header.nbytes or stream.read(1):
                raise InputError(f"{self.path}: {header.key} is truncated or damaged")
        order = "F" if header.columns else "C"
        return np.frombuffer(values, header.dtype).reshape(header.shape, order=order)  # type: ignore[call-overload]

    def _header(self, key: str) -> Header:
        member = self._members[key]
        with self._file.open(member) as stream:
            header = _read_header(stream, key)
            start = stream.tell()
        if header is None:
            raise InputError(f"{self.path}: {key} is not an array")
        if header.dtype.hasobject:
            raise InputError(f"{self.path}: {key} holds Python objects, which are not unpickled; save plain arrays")
        # A hostile zip file may declare any size; deflate bounds what there can be.
        held = member.file_size
        if member.compress_type == zipfile.ZIP_DEFLATED:
            held = min(held, member.compress_size * DEFLATE_RATIO)
        if held != start + header.nbytes:
            announced = f"{list(header.shape)} of {header.dtype}, {start + header.nbytes} bytes"
            raise InputError(f"{self.path}: {key} is truncated or damaged: it announces {announced}, and holds {held}")
        return header


def _read_header(stream: IO[bytes], key: str) -> Header | None:
    """Read the header of an array and leave the stream at its values; None if it has none."""
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError:
        return None
    # Version 3 differs in names of fields beyond Latin-1, which images and labels do not have.
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        return None
    shape, columns, dtype = read(stream)
    if any(size < 0 for size in shape):
        return None
    return Header(key, shape, dtype, columns)
