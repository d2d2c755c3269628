"""Execution of a run to its end, with checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bionas_fast.config import Duration
from bionas_fast.errors import InputError, Interrupted
from bionas_fast.runs.callbacks import Callback, make_loggers
from bionas_fast.runs.folder import REPORT, RunFolder
from bionas_fast.runs.measurement import Build, time_left
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.resume import resume_command
from bionas_fast.runs.signals import Interrupts
from bionas_fast.runs.tensorboard import TensorBoardWriter
from bionas_fast.runs.trainer import Phase, Trainer
from bionas_fast.runtime import distributed


def execute(
    trainer: Trainer,
    folder: RunFolder | None,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
    *,
    build: Build | None = None,
) -> None:
    """Train to the end and write the report; without a folder nothing is saved.

    Of several processes, only rank 0 has the folder. All stop after the same step.

    Args:
        trainer: the run.
        folder: its folder.
        progress: receives its progress.
        callbacks: see the network and the step.
        build: builds another trainer of this run from other settings; without one, its time is not measured.

    Raises:
        Interrupted: Ctrl-C or SIGTERM, after the current step; the message says how to resume.
        PeerLost: another process has ended; the message says how to resume.
        InputError: the training cannot continue, or a file cannot be written. The last checkpoint remains valid.
    """
    if folder is None and not distributed.active():
        _announce(trainer, {}, progress, build)
        _train(trainer, progress, callbacks, lambda: None, lambda row: None)
        return
    if folder is not None and not trainer.finished:
        callbacks = [*callbacks, *make_loggers(trainer.config.loggers, folder.path, trainer.config)]
    complete = trainer.finished
    hint = f"resume with: {resume_command(trainer.kind, folder)}" if folder else "rank 0 says how to resume"
    try:
        with Interrupts(progress.interrupted) as interrupts, distributed.watched(hint):
            try:
                if not complete:
                    facts = {"run folder": str(folder.path)} if folder else {}
                    _announce(trainer, facts, progress, build, lambda: interrupts.requested)
                    with _Saver(trainer, folder, interrupts) as saver:
                        _train(trainer, progress, callbacks, saver.after_step, saver.after_epoch)
                if folder is not None and not (complete and (folder.path / REPORT).is_file()):
                    trainer.write_report(folder)
                if folder is not None and not complete:
                    folder.write_duration(trainer.duration)
            except (InputError, RuntimeError) as error:
                # After the loss of a process, what is read from a GPU may be anything, and so may its error.
                lost = error if isinstance(error, distributed.PeerLost) else distributed.lost_peer()
                if lost is None:
                    raise
                # The launcher is about to send SIGTERM to the remaining processes; this one has a message to print.
                interrupts.persist()
                raise distributed.PeerLost(f"{lost}; {hint}") from error
    except KeyboardInterrupt:
        if folder is not None and not complete:
            folder.write_duration(trainer.duration)
        raise Interrupted(f"interrupted; {hint}") from None


def _announce(
    trainer: Trainer,
    facts: Mapping[str, str],
    progress: Progress,
    build: Build | None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Tell what the run is, and how long it will take in one process."""
    progress.begin(trainer.describe() | dict(facts))
    if progress.timed and build is not None and not distributed.active():
        with progress.measuring():
            seconds = time_left(trainer, build, stopped)
        if seconds is not None:
            progress.expect(seconds)


def _train(
    trainer: Trainer,
    progress: Progress,
    callbacks: Sequence[Callback],
    after_step: Callable[[], None],
    after_epoch: Callable[[Mapping[str, Any] | None], None],
) -> None:
    """Train epoch by epoch; ``progress`` is started and finished once per phase."""
    phase: Phase | None = None
    trainer.announce = progress.note
    for callback in callbacks:
        callback.on_begin(trainer.moment())
    try:
        while not trainer.finished:
            if trainer.phase is not phase:
                if phase is not None:
                    progress.finish()
                phase = trainer.phase
                progress.start(phase.description, phase.epochs, len(phase.batches))
                if trainer.phase_epoch or trainer.steps_done:
                    progress.resume(trainer.phase_epoch, trainer.steps_done)
            trainer.enter_epoch()
            while trainer.steps_done < len(phase.batches):
                progress.step(trainer.step())
                for callback in callbacks:
                    callback.on_step(trainer.moment())
                after_step()
            row = trainer.end_epoch()
            if row is not None:
                for callback in callbacks:
                    callback.on_epoch(trainer.moment(row))
            after_epoch(row)
            if row is not None:
                progress.epoch(row)
        for callback in callbacks:
            callback.on_end(trainer.moment())
    finally:
        if phase is not None:
            progress.finish()


class _Saver:
    """Saves a run after every epoch, at time intervals, and on a request to stop."""

    def __init__(self, trainer: Trainer, folder: RunFolder | None, interrupts: Interrupts) -> None:
        self.trainer = trainer
        self.folder = folder
        self.interrupts = interrupts
        self.saved = time.monotonic()
        self._begun = self.saved, _processor_seconds()
        self._before = trainer.duration
        self.board = TensorBoardWriter(folder, len(trainer.metrics)) if folder and trainer.config.tensorboard else None

    def __enter__(self) -> _Saver:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def after_step(self) -> None:
        due = time.monotonic() - self.saved >= self.trainer.config.checkpoint_every
        stop, due = map(bool, distributed.all_reduce_sum(self.interrupts.requested, due))
        if stop or due:
            self._save()
        if stop:
            raise KeyboardInterrupt

    def after_epoch(self, row: Mapping[str, Any] | None) -> None:
        if self.folder is not None:
            # The checkpoint is written last, so the other files contain everything that it counts as done.
            self.folder.write_metrics(self.trainer.metrics)
            self.trainer.write_results(self.folder)
        if self.board is not None and row is not None:
            self.board.write(row, self.trainer)
        self._save(best=row is not None and self._is_best())
        if self._stop_requested() and not self.trainer.finished:
            raise KeyboardInterrupt

    def _stop_requested(self) -> bool:
        """Whether any process was asked to stop; all stop after the same step."""
        return any(distributed.all_reduce_sum(self.interrupts.requested))

    def _is_best(self) -> bool:
        *before, last = (row.get("valid_accuracy", -1.0) for row in self.trainer.metrics)
        return last > max(before, default=-1.0)

    def _save(self, best: bool = False) -> None:
        self.trainer.read()
        self.trainer.expect_finite()  # a checkpoint that could not be resumed would replace one that can
        wall, processor = self._begun
        (used,) = distributed.all_reduce_sum(_processor_seconds() - processor)
        self.trainer.duration = self._before + Duration(time.monotonic() - wall, used)
        if self.folder is not None:
            self.folder.write_checkpoint(self.trainer.state_dict(), best=best)
        self.saved = time.monotonic()


def _processor_seconds() -> float:
    """Return the processor time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])
