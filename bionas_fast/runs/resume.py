"""Opening of a run: a new one, or one resumed from its folder."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from bionas_fast.config import RunConfig, RunRecord
from bionas_fast.data import expect_shape
from bionas_fast.errors import BionasWarning, InputError
from bionas_fast.runs.callbacks import require_loggers
from bionas_fast.runs.checkpoint import expect_run, expect_same
from bionas_fast.runs.folder import CHECKPOINT, NewFolder, RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.memory import memory_explained
from bionas_fast.runs.tensorboard import require_tensorboard
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime import distributed
from bionas_fast.runtime.isolation import exclusive, ordinary_modes, preserved_generator
from bionas_fast.runtime.machine import DECISIVE, machine

T = TypeVar("T", bound=Trainer)


@contextmanager
def open_run(
    kind: type[T],
    config: RunConfig | None,
    *,
    out: str | Path | NewFolder | None,
    resume: str | Path | None,
    make: Callable[[Any, RunFolder | None], T],
) -> Iterator[tuple[T, RunFolder | None]]:
    """Open a run for the block: yield its trainer and its folder, locked by this process.

    Args:
        kind: the class of the trainer.
        config: the settings; by default those of the resumed run, or the defaults.
        out: the folder of a new run, new or empty; without ``out`` and ``resume`` nothing is saved.
        resume: the folder of a run, which is resumed from its last checkpoint. ``config`` may change only settings
            that do not affect the result.
        make: builds the trainer from the settings and, for a resumed run, its folder.

    Raises:
        InputError: the folder is not empty, in use, or not writable; the run does not exist, is of another kind, has
            other settings, or is damaged. Then nothing has been changed.
    """
    with ordinary_modes(), memory_explained():
        if resume is not None:
            if out is not None:
                raise InputError("a resumed run stays in its folder: give either out or resume")
            folder = _on_main(lambda: RunFolder.open(resume).lock())
            with folder or nullcontext():
                source = folder or RunFolder.open(resume)
                yield _on_all(lambda: _resumed(kind, config, source, make)), folder
            return
        defaults: Callable[[], RunConfig] = kind.settings
        trainer = _on_all(lambda: make(config or defaults(), None))
        folder = None if out is None else _on_main(lambda: _begin(trainer, out))
        with folder or nullcontext():
            yield trainer, folder


def resume_command(kind: str, folder: RunFolder) -> str:
    """Return the command that resumes a run."""
    return f"bionas-fast {get_kind(kind).command} --resume {shlex.quote(str(folder.path))}"


def _on_all(build: Callable[[], T]) -> T:
    """Build a trainer on all ranks; PyTorch's generator is then as before. An error of a rank is raised on all."""
    with exclusive(), preserved_generator():
        return distributed.run_on_all_ranks(build)


def _on_main(locked: Callable[[], RunFolder]) -> RunFolder | None:
    """Lock a folder on rank 0 and return it there, None on the other ranks; errors are raised on all ranks."""
    return distributed.run_on_all_ranks(lambda: locked() if distributed.is_main() else None)


def _begin(trainer: Trainer, out: str | Path | NewFolder) -> RunFolder:
    require_loggers(trainer.config.loggers)
    if trainer.config.tensorboard:
        require_tensorboard()
    folder = RunFolder.create(out)
    try:
        trainer.write_beginning(folder)
    except BaseException:
        folder.unlock()
        raise
    return folder


def _resumed(
    kind: type[T], config: RunConfig | None, folder: RunFolder, make: Callable[[Any, RunFolder | None], T]
) -> T:
    record = folder.read()
    config = _resumed_config(kind, config, folder, record)
    state = folder.read_checkpoint() if (folder.path / CHECKPOINT).is_file() else None
    if state is not None:
        try:
            expect_run(state, kind.kind, config)
        except InputError as error:
            raise InputError(f"{folder.path / CHECKPOINT}: {error}; nothing was changed") from None
    trainer = make(config, folder)
    if state is not None:
        try:
            if isinstance(record.network, dict):
                expect_shape(trainer.data, record.network)
            trainer.load_state_dict(state)
        except InputError as error:
            raise InputError(f"{folder.path / CHECKPOINT}: {error}{folder.recovery_hint()}") from None
    if distributed.is_main():
        _warn(folder, trainer, record, begins=state is None)
        if state is None:
            trainer.write_beginning(folder)
    return trainer


def _resumed_config(kind: type[Trainer], config: RunConfig | None, folder: RunFolder, record: RunRecord) -> RunConfig:
    """Check the kind and the settings of a run to resume; return ``config`` or, if None, the settings of the run."""
    _expect_kind(record, kind.kind, folder)
    try:
        recorded = kind.settings(**record.settings)
    except InputError as error:
        raise InputError(f"{record.path}: {error}") from None
    if config is not None:
        expect_same(recorded, config, f"the run {folder.path}")
    chosen: Any = config or recorded
    require_loggers(chosen.loggers)
    if chosen.tensorboard:
        require_tensorboard()
    return chosen


def _expect_kind(record: RunRecord, kind: str, folder: RunFolder) -> None:
    if record.kind == kind:
        return
    if record.kind in kind_names():
        raise InputError(f"{folder.path} is a run of another kind; resume with: {resume_command(record.kind, folder)}")
    raise InputError(f"{record.path}: kind is {record.kind!r:.40}, expected {kind!r}")


def _warn(folder: RunFolder, trainer: Trainer, record: RunRecord, begins: bool) -> None:
    """Warn where a resumed run may behave differently from what its user expects."""

    def warn(message: str) -> None:
        warnings.warn(f"{folder.path}: {message}", BionasWarning, stacklevel=2)

    if begins:
        warn("no checkpoint yet; starts from the beginning")
    if trainer.finished:
        warn("this run is complete")
        return
    then, now = record.machine, machine()
    changed = [name for name in DECISIVE if then and then.get(name) != now[name]]
    if changed:
        listed = "; ".join(f"{name} {then.get(name)!s:.40} then, {now[name]} now" for name in changed)
        warn(f"the last bits of the result may differ: {listed}")
