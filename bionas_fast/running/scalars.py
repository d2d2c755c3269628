"""The figures of a run as TensorBoard shows them, where its package is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from bionas_fast.errors import InputError
from bionas_fast.runs import RunFolder

FOLDER = "tensorboard"


def expect_tensorboard() -> None:
    """Check that the package is there.

    Raises:
        InputError: it is not.
    """
    if find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard: the package is not installed: pip install tensorboard, or do without --tensorboard"
        )


class Scalars:
    """Writes a scalar for every number in a row of the metrics, over epochs.

    Args:
        done: how many rows were written before. Later ones, of epochs that are now repeated, disappear.
    """

    def __init__(self, folder: RunFolder, done: int) -> None:
        expect_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder.path / FOLDER
        try:
            self._writer = SummaryWriter(str(self._path), purge_step=done + 1 if self._path.is_dir() else None)
        except OSError as error:
            raise self._cannot_write(error) from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row, and see that it reaches the file."""
        try:
            for name, value in row.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()
        except OSError as error:
            raise self._cannot_write(error) from None

    def close(self) -> None:
        """Let go of the file."""
        try:
            self._writer.close()
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self._path}: {error.strerror or error}")
