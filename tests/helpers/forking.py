"""Commands and programs in forked children of one process, so that many of them cost one import of torch.

Run as a program it is that process: it forks before anything has started a thread, reads tasks from stdin, a line each,
and answers each with how the child ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class End:
    """The end of a child process: exit code, or minus the signal; what it said; the processor time it took."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Runner:
    """The process that forks.

    Args:
        module: what serves the tasks; it may know more of them than this one.
    """

    def __init__(self, module: str = __name__) -> None:
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def __call__(self, *arguments: Any, **how: Any) -> End:
        """Run ``bionas-fast`` with these arguments.

        Args:
            cwd: the folder in which it runs.
            processes: how many, as ``torchrun`` would start them; they end as the first that fails, and what they said
                is that of all, one after the other.
            drawn: whether runs write their reports, with all drawings.
            signals: ``[(seconds, number), …]``: what is sent to the process, and after how much processor time.
            how: more of it, which the module understands.
        """
        return self._do(arguments=[str(word) for word in arguments], **how)

    def program(self, code: str, **how: Any) -> End:
        """Run a program in Python."""
        return self._do(program=code, **how)

    def _do(self, cwd: Any = None, **task: Any) -> End:
        assert self._process.stdin is not None and self._process.stdout is not None
        task["cwd"] = None if cwd is None else str(cwd)
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return End(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        # A word, not only the end of the pipe: a process that a test left behind may hold its other end open.
        self._process.stdin.write("null\n")
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def serve(prepare: Callable[..., None] = lambda: None) -> None:
    """Answer the tasks of a :class:`Runner`; ``prepare`` is called in each child, with the words it has more."""
    # Imported once, not in every child: the library, the command line, optimisers, the measure of sizes, the digits.
    import sklearn.datasets  # noqa: F401
    import torch
    import torch._dynamo
    import torch.utils.flop_counter

    import bionas_fast as bf
    import bionas_fast.analysis.figures
    import bionas_fast.cli.app
    from helpers import registries

    for name in bf.__all__:
        getattr(bf, name)
    registries.load()
    torch.set_num_threads(1)
    for line in sys.stdin:
        task = json.loads(line)
        if task is None:
            break
        print(json.dumps(_fork(prepare, **task)), flush=True)


def _fork(
    prepare: Callable[..., None],
    signals: Sequence[tuple[float, int]] = (),
    processes: int = 1,
    **task: Any,
) -> dict[str, Any]:
    if processes == 1:
        return _Child(prepare, task).end(signals)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes}
    children = [_Child(prepare, task, {**world, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(processes)]
    ends = [child.end() for child in children]
    return {
        "code": next((end["code"] for end in ends if end["code"]), 0),
        **{name: "".join(end[name] for end in ends) for name in ("stdout", "stderr")},
        "seconds": sum(end["seconds"] for end in ends),
    }


class _Child:
    """A child process that runs a task, with more in its environment."""

    def __init__(self, prepare: Callable[..., None], task: dict[str, Any], more: Mapping[str, Any] = {}) -> None:
        self.files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.started = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            code = 1
            try:
                for number, file in enumerate(self.files, start=1):
                    os.dup2(file.fileno(), number)
                # As at the start of a program, whatever the process of the tests ignores.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for number in (signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                os.environ.update({name: str(value) for name, value in more.items()})
                code = _run(prepare, **task)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def end(self, signals: Sequence[tuple[float, int]] = ()) -> dict[str, Any]:
        """Wait for the end of the child, and send it signals meanwhile."""
        child = self.process
        for moment, number in signals:
            while _running(child):
                if _used(child, self.started) >= moment:
                    os.kill(child, number)
                    break
                time.sleep(0.001)
        _, status, usage = os.wait4(child, 0)
        said = []
        for file in self.files:
            with file:
                file.seek(0)
                said.append(file.read().decode())
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
    prepare: Callable[..., None],
    cwd: str | None,
    arguments: list[str] | None = None,
    program: str | None = None,
    drawn: bool = False,
    **how: Any,
) -> int:
    """Run a command, or else a program. Returns its exit code."""
    from bionas_fast.cli import app
    from helpers import reports

    if cwd is not None:
        os.chdir(cwd)
    if not drawn:
        reports.leave_out()
    prepare(**how)
    try:
        if program is None:
            app.main(arguments)
        else:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve()
