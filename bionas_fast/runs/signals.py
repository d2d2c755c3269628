"""Interrupts: Ctrl-C; SIGTERM, by which clusters end a job; SIGHUP, when the terminal closes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


class Interrupts:
    """A context in which the first signal only sets ``requested`` and the second raises KeyboardInterrupt at once.

    Signals that the process ignores from its start stay ignored. Outside the main thread nothing is changed, because
    Python delivers signals only to the main thread.

    Args:
        listener: called at the first signal.
    """

    def __init__(self, listener: Callable[[], object] = lambda: None) -> None:
        self.requested = False
        self._listener = listener
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be restored from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def persist(self) -> None:
        """Keep the handlers after the block, until the process ends."""
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._listener()
