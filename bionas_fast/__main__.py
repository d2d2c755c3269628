"""Entry point of ``bionas-fast`` and of ``python -m bionas_fast``."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


def main() -> None:
    """Run the command line; Ctrl-C ends it in one line, also while modules are imported."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read by libgomp when torch loads it. By default threads that are done spin until the slowest one is: on a core
        # that it shares with another program, a spinning thread uses up the time in which it should work.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from bionas_fast.cli.app import main as run

    run()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; during an import, end the process instead.

    An import takes seconds, in which nothing needs saving, and it may lose an exception or turn it into another one.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, b"interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
