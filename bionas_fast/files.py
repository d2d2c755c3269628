"""Files that are either the old one or the new one, never half of it."""

from __future__ import annotations

import os
from pathlib import Path

from bionas_fast.errors import InputError


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
