"""Metrics of a run for TensorBoard, an optional dependency."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from bionas_fast.errors import InputError
from bionas_fast.runs.folder import RunFolder

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        InputError: the package is missing.
    """
    if find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard: the package is not installed; pip install tensorboard, or leave this setting out"
        )


class ScalarWriter:
    """Writes every number of a row of the metrics as a scalar over epochs.

    Args:
        done: the number of rows that remain valid. TensorBoard hides later ones, of epochs that are now repeated.

    Raises:
        InputError: the files cannot be written.
    """

    def __init__(self, folder: RunFolder, done: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder.path / FOLDER
        repeated = done + 1 if self._folder.is_dir() else None
        with self._named_errors():
            self._writer = SummaryWriter(str(self._folder), purge_step=repeated)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row of the metrics.

        Raises:
            InputError: the row cannot be written.
        """
        with self._named_errors():
            for name, value in row.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, row["epoch"])
            # Wait for the writing thread, so that its errors surface before the checkpoint counts the epoch as done.
            self._writer.flush()

    def close(self) -> None:
        """Close the files; all rows have been flushed before."""
        with contextlib.suppress(OSError):
            self._writer.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot write {self._folder}: {error.strerror or error}") from None
