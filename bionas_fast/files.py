"""Files that are either the old one or the new one, never half of it; and files that one process holds alone."""

from __future__ import annotations

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


def hold(path: Path) -> BinaryIO:
    """Open a file that no other process holds, and hold it until it is closed or this process ends, however it ends.

    Raises:
        InputError: another process holds it (the message names the process), or it cannot be written.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror or error}") from None
    try:
        _lock(file)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).decode(errors="replace") or "another process"
        file.close()
        raise InputError(f"{path.parent} is in use by {holder}; nothing in it was changed") from None
    except OSError as error:
        file.close()
        raise InputError(f"cannot write to {path.parent}: {error.strerror or error}") from None
    return file


def _lock(file: BinaryIO) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # a file system without locks is no reason not to work on it
        warnings.warn(f"{file.name} cannot be locked: {error.strerror or error}", BionasWarning, stacklevel=4)
