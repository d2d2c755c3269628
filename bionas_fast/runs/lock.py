"""The lock of a run folder: one process at a time writes into it."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from pathlib import Path

from bionas_fast.errors import BionasWarning, InputError

#: The locked file, and the one beside it that names the process holding the lock.
LOCK = ".lock"
HOLDER = ".lock.holder"


class FolderLock:
    """A lock on a folder, held until :meth:`release` or until the process ends, however it ends.

    Raises:
        InputError: another process holds the lock (the message names the process), or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout  # not needed by those who only read

        self.folder = folder
        # Locks of files die with their process; marker files, to which filelock falls back by default, do not.
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{folder} is in use by {self._holder()}; nothing in it was changed") from None
        except OSError as error:
            # Unlike opening a file, locking it names no file in its errors.
            if error.filename is not None:
                raise self._cannot_write(error) from None
            message = f"{folder / LOCK} cannot be locked: {error.strerror or error}"
            warnings.warn(message, BionasWarning, stacklevel=3)
        try:
            (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        except OSError as error:
            self.release()
            raise self._cannot_write(error) from None

    def release(self) -> None:
        """Remove the files and let others lock the folder."""
        # Removed while it is locked: whoever waits for a removed file tries again with a new one.
        for name in (HOLDER, LOCK):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()
        self._lock.release()

    def _holder(self) -> str:
        try:
            return (self.folder / HOLDER).read_text(errors="replace")[:200] or "another process"
        except OSError:
            return "another process"

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"cannot write to {self.folder}: {error.strerror or error}")
