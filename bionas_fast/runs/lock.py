"""The lock of a run folder, for one writing process at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from pathlib import Path

from bionas_fast.errors import BionasWarning, InputError

#: The locked file, and the file next to it that names the process holding the lock.
LOCK = ".lock"
HOLDER = ".lock.holder"


def is_locked(folder: Path) -> bool:
    """Whether a process seems to hold the lock of a folder: it is named, and runs, or is on another machine.

    The lock itself is not tried, which would make it fail for others.
    """
    try:
        words = (folder / HOLDER).read_text(errors="replace").split()
        process, host = int(words[1]), words[3]
    except (OSError, ValueError, IndexError):
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


class FolderLock:
    """A lock on a folder, held until :meth:`release` or the end of the process, even if it is killed.

    Raises:
        InputError: another process holds the lock (the message names the process), or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout  # not needed for reading

        self.folder = folder
        # File locks end with their process; marker files, the default fallback of filelock, do not.
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{folder} is in use by {self._holder()}; nothing in it was changed") from None
        except OSError as error:
            # Errors of locking, unlike those of opening, do not name the file.
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
        """Remove the lock files and release the lock."""
        # Removed while locked: a process waiting for a removed file retries with a new one.
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
