"""Atomic writing of files."""

from __future__ import annotations

import os
from pathlib import Path

from bionas_fast.errors import InputError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically: readers see the old content or all of ``data``, even after a power failure.

    Raises:
        InputError: the file cannot be written; the message says why.
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
    """Whether a killed :func:`write_atomic` may have left this file."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def create_folder(path: Path) -> None:
    """Create a folder, with those above it, unless it is there.

    Raises:
        InputError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from None
