"""Runs of the command line in forked children of one process, so that twenty of them cost one import; and their ends.

Run as a script it is that process: it forks before anything has started a thread, reads tasks from stdin, a line each,
and answers each with how the child ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A dataset made for this: so small that an epoch takes a fraction of a second.
DATASET = "specks"
#: What is written in place of the report.
REPORT = "<svg/>"


@dataclass(frozen=True)
class End:
    """The end of a child process: exit code, or minus the signal; what it said; the processor time it took."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Runner:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, *arguments: Any, **how: Any) -> End:
        """Run ``bionas-fast`` with these arguments.

        Args:
            signals: ``[(seconds, number), …]``: what is sent to the process, and after how much processor time.
            signal_at_step: ``(step, number, …)``: the process sends itself these within that step, counted from 1.
            kill_at_write: the write at which the process kills itself, counted in thirds from 0: half-written, whole
                but not in place, in place.
            file_limit: the largest file that can be written, in bytes.
            ordinary: the process gives up the privileges of root, which may read and write everywhere.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": [str(a) for a in arguments], **how}) + "\n")
        self._process.stdin.flush()
        return End(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def _fork(task: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                _run(**task)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)
        for moment, number in task.get("signals", ()):
            while _running(child):
                if _used(child, started) >= moment:
                    os.kill(child, number)
                    break
                time.sleep(0.001)
        _, status, usage = os.wait4(child, 0)
        said = [file.seek(0) or file.read().decode() for file in (out, err)]
        return {
            "code": os.waitstatus_to_exitcode(status),
            "stdout": said[0],
            "stderr": said[1],
            "seconds": usage.ru_utime + usage.ru_stime,
        }


def _running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _used(child: int, started: float) -> float:
    """Processor time, so that a busy machine changes nothing; elsewhere than on Linux the time since it started."""
    return time.clock_gettime((~child << 3) | 2) if sys.platform == "linux" else time.monotonic() - started


def _run(
    arguments: list[str],
    signals: object = (),
    signal_at_step: tuple[int, ...] | None = None,
    kill_at_write: int | None = None,
    file_limit: int | None = None,
    ordinary: bool = False,
) -> None:
    import resource

    from bionas_fast.cli import app

    if signal_at_step is not None:
        _signal_at_step(*signal_at_step)
    if kill_at_write is not None:
        _die_at_write(kill_at_write)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if ordinary and os.getuid() == 0:
        _without_capabilities()
    try:
        app.main(arguments)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def _without_capabilities() -> None:
    """Still root, and the owner of its files, but bound by their permissions (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset failed")


def _signal_at_step(last: int, *numbers: int) -> None:
    from bionas_fast.runs.trainer import Trainer

    done = 0
    step = Trainer.step

    def signalling(self: Trainer) -> float | None:
        nonlocal done
        done += 1
        if done == last:
            for number in numbers:
                os.kill(os.getpid(), number)
        return step(self)

    Trainer.step = signalling  # type: ignore[method-assign]


def _die_at_write(last: int) -> None:
    """Have this process kill itself at a moment of its choice."""
    done = 0
    fsync, replace = os.fsync, os.replace

    def moment() -> bool:
        nonlocal done
        done += 1
        return done > last

    def half_written(file: int) -> None:
        if moment():
            os.truncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    def moved(source: Path, target: Path) -> None:
        if moment():
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if moment():
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = half_written, moved  # type: ignore[assignment]


def specks(data_dir: Path | None, *, download: bool, seed: int) -> Any:
    import torch

    from bionas_fast.data import Dataset

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 4
    images = torch.rand(96, 1, 6, 6, generator=generator) * (1 + labels.view(-1, 1, 1, 1)) / 4
    return Dataset.from_tensors(DATASET, (images[:64], labels[:64]), (images[64:], labels[64:]))


def write_report(run: Path, **_: Any) -> None:
    """Replacement of the drawings, which would take longer than the search and have tests of their own."""
    from bionas_fast.runs.files import write_atomic

    write_atomic(run / "report.html", REPORT)


def _serve() -> None:
    # Imported once, not in every child: optimisers, the report of a comparison, the measure of sizes.
    import torch._dynamo
    import torch.utils.flop_counter

    from bionas_fast import report
    from bionas_fast.data import register_dataset

    torch.set_num_threads(1)
    register_dataset(DATASET)(specks)
    report.write_report = write_report
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
