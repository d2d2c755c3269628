"""Execution of steps, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bionas_fast.config import CONFIG
from bionas_fast.errors import Interrupted
from bionas_fast.reproduce.plan import Step
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.seeds import TABLE_JSON
from bionas_fast.runs.signals import Interrupts
from bionas_fast.runs.summary import RunSummary

#: Folder of what the commands print, within that of all runs.
LOGS = "logs"
#: Seconds between two looks at the processes.
_INTERVAL = 0.2
#: Each thread of these libraries takes a core.
_THREADS = "OMP_NUM_THREADS"


class Listener:
    """Receives the progress of steps: override the methods of interest."""

    def started(self, step: Step) -> None:
        """Called when a step begins or continues."""

    def ended(self, step: Step, seconds: float, failure: str | None) -> None:
        """Called when a step has ended; ``failure`` is its last line if it failed."""


def is_done(step: Step) -> bool:
    """Whether the results of a step are there."""
    if not step.is_run:
        return os.path.isfile(step.folder / TABLE_JSON)
    return os.path.isfile(step.folder / CONFIG) and RunSummary.read(step.folder).state == "complete"


def run_steps(
    steps: Sequence[Step], logs: Path, *, jobs: int = 1, launcher: Sequence[str] = (), listener: Listener | None = None
) -> dict[Step, str]:
    """Execute the steps that are not done, each as soon as those that it needs are.

    Args:
        steps: the steps.
        logs: a folder; what a step prints is appended to ``NAME-seed-N.log``.
        jobs: number of processes at a time. With several, and unless OMP_NUM_THREADS is set, each has its share of the
            processor's cores.
        launcher: a program that starts searches and trainings in several processes, such as
            ``torchrun --nproc-per-node=8``.
        listener: receives the progress.

    Returns:
        The last line that each failed step printed; of one that needs it: the folder that is missing.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM; the running steps are saved.
    """
    logs.mkdir(parents=True, exist_ok=True)
    listener, failures = listener or Listener(), dict[Step, str]()
    waiting = [step for step in steps if not is_done(step)]
    running: list[_Process] = []
    with Interrupts() as interrupts:
        while waiting or running:
            if interrupts.requested:
                _stop(running)
                raise Interrupted("interrupted; to continue, give the same command")
            unfinished = {step.folder for step in (*waiting, *(process.step for process in running))}
            lost = {step.folder for step in failures}
            for step in [step for step in waiting if not lost.isdisjoint(step.needs)]:
                waiting.remove(step)
                failures[step] = f"needs {next(folder for folder in step.needs if folder in lost)}"
            for step in [step for step in waiting if unfinished.isdisjoint(step.needs)]:
                if len(running) == jobs:
                    break
                waiting.remove(step)
                listener.started(step)
                running.append(_Process.start(step, logs, jobs, launcher))
            for process in [process for process in running if process.ended]:
                running.remove(process)
                failure = process.failure()
                if failure is not None:
                    failures[process.step] = failure
                listener.ended(process.step, process.seconds, failure)
            time.sleep(_INTERVAL)
    return failures


@dataclass(eq=False)
class _Process:
    step: Step
    process: subprocess.Popen[bytes]
    log: Path
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, step: Step, logs: Path, jobs: int, launcher: Sequence[str]) -> _Process:
        program = [*launcher] if launcher and _launches(step) else [sys.executable]
        command = step.command(resume=step.is_run and os.path.isfile(step.folder / CONFIG))
        environment = dict(os.environ)
        if jobs > 1:
            environment.setdefault(_THREADS, str(max(1, (os.cpu_count() or 1) // jobs)))
        step.folder.parent.mkdir(parents=True, exist_ok=True)
        log = logs / f"{step.name}-seed-{step.seed}.log"
        with open(log, "ab") as file:
            # A session of its own: Ctrl-C reaches the process once, from here.
            process = subprocess.Popen(
                [*program, "-m", "bionas_fast", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return cls(step, process, log)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def failure(self) -> str | None:
        """Return the last line of the log if the process failed."""
        if self.process.returncode == 0:
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return last or f"ended with code {self.process.returncode}"


def _launches(step: Step) -> bool:
    """Whether several processes can run a step together."""
    if not step.is_run:
        return False
    kind = next((kind for kind in map(get_kind, kind_names()) if step.words[1] in kind.sources), None)
    return kind is None or not kind.trainer.single_process


def _stop(running: Sequence[_Process]) -> None:
    """Let the processes save their runs, and wait for them; after a second interrupt, for less."""
    # Not SIGINT: processes that a shell started in the background, and theirs, ignore it.
    for process in running:
        process.process.terminate()
    try:
        for process in running:
            process.process.wait()
    except KeyboardInterrupt:
        for process in running:
            process.process.terminate()
        raise
