"""Files that are either the old one or the new one, never half of it; and files that one process holds alone."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from pathlib import Path
from typing import BinaryIO

from bionas_fast.errors import BionasWarning, InputError

try:
    import fcntl
except ImportError:  # pragma: no cover - systems without POSIX locks
    fcntl = None  # type: ignore[assignment]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file in one step: readers see what stood there before or all of ``data``, even after a power cut.

    Raises:
        InputError: it cannot be written there; the message says why.
    """
    # In the same folder, since a rename is atomic only within a file system.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with draft.open("wb") as file:
                file.write(data.encode(errors="replace") if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def is_draft(path: Path) -> bool:
    """Whether this is what a killed :func:`write_atomic` may have left."""
    return path.name.startswith(".") and path.suffix == ".tmp"


class Held:
    """A file that no other process holds. It is held until :meth:`release`, or this process ends, however it ends.

    Raises:
        InputError: another process holds it (the message names the process), or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("a+b")
            _lock(self._file)
            while not _is_same(self._file, path):  # released and removed between opening and locking it
                self._file.close()
                self._file = path.open("a+b")
                _lock(self._file)
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            self._file.flush()
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read(200).decode(errors="replace") or "another process"
            self._file.close()
            raise InputError(f"{path.parent} is in use by {holder}; nothing in it was changed") from None
        except OSError as error:
            raise InputError(f"cannot write to {path.parent}: {error.strerror or error}") from None

    def release(self) -> None:
        """Remove the file and let others have it."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._file.close()


def _lock(file: BinaryIO) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # a file system without locks is no reason not to work on it
        warnings.warn(f"{file.name} cannot be locked: {error.strerror or error}", BionasWarning, stacklevel=4)


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
