"""The figures of a run as TensorBoard shows them, where its package is installed."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from bionas_fast.errors import InputError
from bionas_fast.runs.folder import RunFolder

FOLDER = "tensorboard"


def expect_tensorboard() -> None:
    """Check that the package is there.

    Raises:
        InputError: it is not.
    """
    if find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard: the package is not installed; pip install tensorboard, or leave this setting out"
        )


class Scalars:
    """Writes a scalar for every number in a row of the metrics, over epochs.

    The file is written here and now: TensorBoard's own writer does so in a thread, whose errors come too late.

    Args:
        done: how many rows were written before. Later ones, of epochs that are now repeated, disappear.
    """

    def __init__(self, folder: RunFolder, done: int) -> None:
        expect_tensorboard()
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path = folder.path / FOLDER / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}"
        try:
            repeats = self._path.parent.is_dir()
            self._path.parent.mkdir(exist_ok=True)
            self._records = RecordWriter(self._path.open("wb"))
        except OSError as error:
            raise self._cannot_write(error) from None
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if repeats:
            self._write(Event(wall_time=time.time(), step=done + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(Event(wall_time=time.time(), step=row["epoch"], summary=Summary(value=values)))

    def close(self) -> None:
        """Let go of the file; whatever could be written has been."""
        with contextlib.suppress(OSError):
            self._records.close()

    def _write(self, event: Any) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self._path}: {error.strerror or error}")
