"""Keeping a run: begin it, save it while it works, take it up again."""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from bionas_fast.config import RunConfig, read_settings, read_yaml
from bionas_fast.errors import BionasWarning, InputError, Interrupted
from bionas_fast.runs.folder import CHECKPOINT, CONFIG, REPORT, RunFolder, machine
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.signals import Interrupts
from bionas_fast.runs.tensorboard import Scalars, expect_tensorboard
from bionas_fast.runs.trainer import Loop, Phase, expect_run, expect_same
from bionas_fast.runtime import distributed

L = TypeVar("L", bound=Loop)

#: What of a machine may change the last bits of a result.
_DECISIVE = ("bionas-fast", "torch", "system", "cpu", "threads", "accelerator")


@contextmanager
def opened(
    kind: type[L],
    config: RunConfig | None,
    *,
    out: str | Path | None,
    resume: str | Path | None,
    make: Callable[[Any, RunFolder | None], L],
) -> Iterator[tuple[L, RunFolder | None]]:
    """A loop, and the folder that it is kept in, which this process holds inside the block.

    Args:
        config: the settings; by default those of the run, or the defaults.
        out: the folder of a new run, new or empty; without it and ``resume`` there is none.
        resume: the folder of a run to go on with, where it was last saved. Settings given with it may differ from those
            of the run only in where and how it works.
        make: builds the loop from the settings and, for a resumed run, its folder.

    Raises:
        InputError: the folder is not empty, in use, or cannot be written; there is no such run, it is of another kind,
            has other settings, or is damaged. Then nothing has been changed.
    """
    if resume is not None:
        if out is not None:
            raise InputError("a resumed run stays in its folder: give either out or resume")
        held = _by_the_first(lambda: RunFolder.open(resume).hold())
        with held or nullcontext():
            yield distributed.united(lambda: _resumed(kind, config, held or RunFolder.open(resume), make)), held
        return
    loop = distributed.united(lambda: make(config or kind.settings(), None))
    if out is None:
        yield loop, None
        return

    def begin() -> RunFolder:
        if loop.config.tensorboard:
            expect_tensorboard()
        folder = RunFolder.create(out)
        try:
            loop.write_beginning(folder)
        except BaseException:
            folder.close()
            raise
        return folder

    begun = _by_the_first(begin)
    with begun or nullcontext():
        yield loop, begun


def _by_the_first(take: Callable[[], RunFolder]) -> RunFolder | None:
    """The folder in the first of several processes, None in the others; what it raises, all of them raise."""
    return distributed.united(lambda: take() if distributed.is_first() else None)


def _resumed(
    kind: type[L], given: RunConfig | None, folder: RunFolder, make: Callable[[Any, RunFolder | None], L]
) -> L:
    path = folder.file(CONFIG)
    notes = read_yaml(path)
    _expect_kind(notes.get("kind"), kind.kind, folder)
    try:
        config: Any = kind.settings(**read_settings(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if given is not None:
        expect_same(config, given, f"the run {folder.path}")
        config = given
    if config.tensorboard:
        expect_tensorboard()
    state = folder.read_checkpoint() if (folder.path / CHECKPOINT).is_file() else None
    if state is not None:
        try:
            expect_run(state, kind.kind, config)
        except InputError as error:
            raise InputError(f"{folder.path / CHECKPOINT}: {error}; nothing was changed") from None
    loop = make(config, folder)
    if state is not None:
        try:
            loop.load_state_dict(state)
        except InputError as error:
            raise InputError(f"{folder.path / CHECKPOINT}: {error}{folder.way_out()}") from None
    if distributed.is_first():
        _note(folder, loop, notes, begins=state is None)
    if state is None and distributed.is_first():
        loop.write_beginning(folder)
    return loop


def keep(loop: Loop, folder: RunFolder | None, progress: Progress) -> None:
    """Run a loop to its end, saving it on the way; without a folder nothing is saved.

    Of several processes the first has the folder. They are stopped together.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM, after the present step; the message says how to go on.
        Deserted: another process has ended; the message says how to go on.
        InputError: the loop cannot go on, or something cannot be written. What was saved before stays.
    """
    if folder is None and not distributed.active():
        with loop.own_randomness():
            _run(loop, progress, lambda: None, lambda row: None)
        return
    complete = loop.finished
    further = f"go on with: {_resume_command(loop.kind, folder)}" if folder else "the first process says how to go on"
    try:
        with Interrupts() as interrupts:
            try:
                if not complete:
                    with loop.own_randomness(), _Keeper(loop, folder, interrupts) as keeper:
                        _run(loop, progress, keeper.after_step, keeper.after_epoch)
                if folder is not None and not (complete and (folder.path / REPORT).is_file()):
                    loop.write_report(folder)
            except distributed.Deserted as error:
                # The launcher is about to send SIGTERM to whom the dead process left; let this one have its say.
                interrupts.stay()
                raise distributed.Deserted(f"{error}; {further}") from error
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {further}") from None


def _run(
    loop: Loop,
    progress: Progress,
    after_step: Callable[[], None],
    after_epoch: Callable[[Mapping[str, Any] | None], None],
) -> None:
    """Epoch by epoch; ``progress`` hears of every phase as of a thing of its own."""
    phase: Phase | None = None
    try:
        while not loop.finished:
            if loop.phase is not phase:
                if phase is not None:
                    progress.finish()
                phase = loop.phase
                progress.start(phase.description, phase.epochs, len(phase.batches))
                if loop.phase_epoch or loop.steps_done:
                    progress.resume(loop.phase_epoch, loop.steps_done)
            loop.enter_epoch()
            while loop.steps_done < len(phase.batches):
                progress.step(loop.step())
                after_step()
            row = loop.end_epoch()
            after_epoch(row)
            if row is not None:
                progress.epoch(row)
    finally:
        if phase is not None:
            progress.finish()


class _Keeper:
    """Saves a loop after every epoch, every so many seconds, and when asked to stop."""

    def __init__(self, loop: Loop, folder: RunFolder | None, interrupts: Interrupts) -> None:
        self.loop, self.folder, self.interrupts = loop, folder, interrupts
        self.saved = time.monotonic()
        self.scalars = Scalars(folder, len(loop.metrics)) if folder and loop.config.tensorboard else None

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        if self.scalars is not None:
            self.scalars.close()

    def after_step(self) -> None:
        asked = self._asked()
        if asked or time.monotonic() - self.saved >= self.loop.config.checkpoint_every:
            self._save()
        if asked:
            raise KeyboardInterrupt

    def after_epoch(self, row: Mapping[str, Any] | None) -> None:
        if self.folder is not None:
            # The checkpoint comes last: whatever it counts as done stands in the other files.
            self.folder.write_metrics(self.loop.metrics)
            self.loop.write_results(self.folder)
        if self.scalars is not None and row is not None:
            self.scalars.write(row)
        self._save(best=row is not None and self._is_best())
        if self._asked() and not self.loop.finished:
            raise KeyboardInterrupt

    def _asked(self) -> bool:
        """Whether any process was asked to stop: all stop after the same step."""
        return any(distributed.total(self.interrupts.asked))

    def _is_best(self) -> bool:
        accuracies = [row["valid_accuracy"] for row in self.loop.metrics if "valid_accuracy" in row]
        return bool(accuracies) and accuracies[-1] > max(accuracies[:-1], default=-1.0)

    def _save(self, best: bool = False) -> None:
        if self.folder is not None:
            self.folder.write_checkpoint(self.loop.state_dict(), best=best)
        self.saved = time.monotonic()


def _resume_command(kind: str, folder: RunFolder) -> str:
    return f"bionas-fast {get_kind(kind).command} --resume {shlex.quote(str(folder.path))}"


def _expect_kind(found: object, kind: str, folder: RunFolder) -> None:
    if found == kind:
        return
    if isinstance(found, str) and found in kind_names():
        raise InputError(f"{folder.path} is a run of another kind; go on with: {_resume_command(found, folder)}")
    raise InputError(f"{folder.path / CONFIG}: kind is {found!r:.40}, expected {kind!r}")


def _note(folder: RunFolder, loop: Loop, notes: Mapping[str, Any], begins: bool) -> None:
    """Warn of what the caller may not expect."""

    def warn(message: str) -> None:
        warnings.warn(f"{folder.path}: {message}", BionasWarning, stacklevel=2)

    if begins:
        warn("no checkpoint yet; starts from the beginning")
    if loop.finished:
        warn("this run is complete")
        return
    then, now = notes.get("machine"), machine()
    if isinstance(then, dict):
        changed = [name for name in _DECISIVE if then.get(name) != now[name]]
        if changed:
            listed = "; ".join(f"{name} {then.get(name)!s:.40} then, {now[name]} now" for name in changed)
            warn(f"the last bits of the result may differ: {listed}")
