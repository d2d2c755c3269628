"""Metrics, distributions and pictures of a run for TensorBoard, an optional dependency."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from bionas_fast.errors import InputError
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.trainer import Trainer

FOLDER = "tensorboard"
#: Metrics that differ by the images only are drawn side by side: the tag of ``train_loss`` is ``loss/train``.
_PARTS = ("train", "valid", "test")
#: The largest number of weights in a histogram; of more, evenly spaced ones are taken.
_WEIGHTS = 100_000


def require_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        InputError: the package is missing.
    """
    if find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard: the package is not installed; pip install tensorboard, or leave this setting out"
        )


def tag(metric: str) -> str:
    """Return the tag of a metric: its group, and its name in the group."""
    part, _, name = metric.partition("_")
    return f"{name}/{part}" if part in _PARTS else f"run/{metric}"


class TensorBoardWriter:
    """Writes a run over its epochs: metrics, distributions of weights and of α, settings, and pictures.

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

    def write(self, row: Mapping[str, Any], trainer: Trainer) -> None:
        """Write a row of the metrics, and the state of the network at the end of that epoch.

        Raises:
            InputError: it cannot be written.
        """
        epoch = row["epoch"]
        with self._named_errors():
            for name, value in row.items():
                if isinstance(value, float):
                    self._writer.add_scalar(tag(name), value, epoch)
            for kind, alpha in trainer.alphas_now().items():
                self._writer.add_histogram(f"alpha/{kind}", alpha.detach().softmax(-1).flatten().cpu(), epoch)
            for name, weight in trainer.net.named_parameters():
                if weight.dim() > 1:
                    values = weight.detach().flatten()
                    self._writer.add_histogram(f"weights/{name}", values[:: -(-len(values) // _WEIGHTS)].cpu(), epoch)
            if trainer.finished:
                self._write_end(row, trainer)
            # Wait for the writing thread, so that its errors surface before the checkpoint counts the epoch as done.
            self._writer.flush()

    def _write_end(self, row: Mapping[str, Any], trainer: Trainer) -> None:
        """Write pictures, and the settings with the metrics that they led to, by which TensorBoard compares runs."""
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard.summary import hparams

        for name, png in trainer.pictures().items():
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            self._writer.add_image(name, pixels, row["epoch"], dataformats="HWC")
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in trainer.config.settings().items()
        }
        measured = {tag(name): value for name, value in row.items() if isinstance(value, float)}
        assert self._writer.file_writer is not None
        for summary in hparams(plain, measured):
            self._writer.file_writer.add_summary(summary)

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
