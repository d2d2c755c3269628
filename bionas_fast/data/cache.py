"""Arrays kept on disk so that they need not be decoded again: written atomically, verified when read."""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bionas_fast.errors import BionasWarning


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an ``.npz`` file; a process that is killed leaves the file complete or missing.

    Where the folder cannot be written, nothing is kept and a warning says so.
    """
    draft = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            draft = Path(file.name)
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        if draft is not None:
            draft.unlink(missing_ok=True)
        warnings.warn(f"{path} could not be written: {error.strerror or error}", BionasWarning, stacklevel=2)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read the arrays of :func:`write_arrays`; None if the file is damaged, which a warning says."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{path} is damaged and is made again: {reason:.200}", BionasWarning, stacklevel=2)
        return None
