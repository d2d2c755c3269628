"""Repetition of runs over seeds: each is a resumable run in its own folder, and their results are one table."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bionas_fast.config import CONFIG, RunConfig
from bionas_fast.errors import Diverged, InputError, Interrupted
from bionas_fast.runs.files import is_draft
from bionas_fast.runs.folder import CHECKPOINT, REPORT, NewFolder, RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.seeds import SeedTable, Series
from bionas_fast.runs.summary import accuracy_of
from bionas_fast.runs.trainer import Trainer, expect_run
from bionas_fast.runtime import distributed


@dataclass(frozen=True)
class Variant:
    """A run to be repeated over seeds.

    Attributes:
        name: its name in tables.
        trainer: its kind of run.
        config: its settings; the seed is replaced.
        start: begins or resumes a run: ``start(config, out=…, resume=…, progress=…)``.
        folder: folder of its runs within that of all variants.
        files: the files besides the settings that define the run, such as its genotype, and their content.
    """

    name: str
    trainer: type[Trainer]
    config: RunConfig
    start: Callable[..., object]
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def path(self, out: Path, seed: int) -> Path:
        """Return the folder of the run of a seed."""
        return out / self.folder / f"seed-{seed}"

    def run(self, out: Path, seed: int, progress: Progress) -> float:
        """Run the variant with a seed to its end, unless that has been done; return its accuracy in percent.

        Raises:
            InputError: the folder holds another run, or one that is in use or damaged; the run cannot continue.
            Interrupted: the run was interrupted, and is saved.
        """
        path, config = self.path(out, seed), self.config.with_settings(seed=seed)
        accuracy = self._accuracy(path, config)
        if accuracy is None:
            begun = distributed.broadcast(os.path.isfile(path / CONFIG))
            self.start(config, **{"resume" if begun else "out": path}, progress=progress)
            accuracy = self._accuracy(path, config)
        if accuracy is None:
            raise InputError(f"{path}: the run has no accuracy")
        return accuracy

    def _accuracy(self, path: Path, config: RunConfig) -> float | None:
        """Read the accuracy of a complete run with these settings; None for another state of the run."""

        def read() -> float | None:
            return self._read(path, config) if distributed.is_main() else None

        return distributed.broadcast(distributed.run_on_all_ranks(read))

    def _read(self, path: Path, config: RunConfig) -> float | None:
        if not os.path.isfile(path / CONFIG) or not os.path.isfile(path / CHECKPOINT):
            return None
        folder = RunFolder.open(path)
        state = folder.read_checkpoint()
        try:
            expect_run(state, self.trainer.kind, config)
        except InputError as error:
            raise error.at(str(path)) from None
        for name, content in self.files.items():
            if folder.file(name).read_text(encoding="utf-8", errors="replace") != content:
                raise InputError(f"{path}: its {name} is not that of {self.name}; choose another folder")
        try:
            row = self.trainer.final_row(state)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(f"{path / CHECKPOINT}: not the state of a run: {error!r:.200}") from None
        # The report is written after the last checkpoint.
        reported = self.trainer.write_report is Trainer.write_report or os.path.isfile(path / REPORT)
        return accuracy_of(row) if row is not None and reported else None


def repeat(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    out: str | Path | NewFolder,
    *,
    metric: str,
    progress: Progress | None = None,
    write: Callable[[SeedTable, Path], object] = SeedTable.write,
) -> SeedTable:
    """Run every variant once per seed, in ``out/FOLDER/seed-N``; complete runs are read, stopped ones resumed.

    All variants run with a seed before the next seed begins. The table is written after every run. A run whose numbers
    are no longer finite is recorded as a failure of the table, and the others go on.

    Args:
        variants: the runs; the table compares each with the first one.
        seeds: the seeds.
        out: the folder: new, empty, or that of an earlier call.
        metric: the accuracy in the table, with its unit.
        progress: receives the progress of each run and its result.
        write: writes a table into the folder.

    Returns:
        The table of the accuracies.

    Raises:
        InputError: the folder is used otherwise; a run cannot begin, continue or be read.
        Interrupted: after Ctrl-C or SIGTERM. The runs are saved; the same call continues them.
    """
    progress = progress or Progress()
    values: dict[str, dict[int, float]] = {variant.name: {} for variant in variants}
    failures: list[str] = []
    with distributed.process_group():
        path = distributed.broadcast(distributed.run_on_all_ranks(lambda: _make(out)))
        for seed in seeds:
            for variant in variants:
                with _continued(path, variant, seed):
                    try:
                        values[variant.name][seed] = accuracy = variant.run(path, seed, progress)
                        progress.result(variant.name, seed, accuracy)
                    except Diverged as error:
                        failures.append(f"{variant.name}, seed {seed}: {error}")
                table = SeedTable(metric, tuple(Series(*own) for own in values.items()), tuple(failures), path)
                if distributed.is_main():
                    write(table, path)
    return table


@contextmanager
def _continued(path: Path, variant: Variant, seed: int) -> Iterator[None]:
    """Extend an interruption by the way to continue all runs, not only the current one."""
    try:
        yield
    except KeyboardInterrupt:
        again = f"give the same command with --out {shlex.quote(str(path))}"
        raise Interrupted(f"interrupted in {variant.name}, seed {seed}; to continue, {again}") from None


def _make(out: str | Path | NewFolder) -> Any:
    """Create the folder of all runs, on rank 0."""
    if not distributed.is_main():
        return None
    try:
        if isinstance(out, NewFolder):
            return out.make()
        path = Path(out)
        path.mkdir(parents=True, exist_ok=True)
        entries = list(path.iterdir())
    except OSError as error:
        place = f"runs/{out.name}" if isinstance(out, NewFolder) else out
        raise InputError(f"cannot write to {place}: {error.strerror or error}") from None
    if os.path.isfile(path / CONFIG):
        raise InputError(f"{path} is the folder of a run; nothing in it was changed. Choose another folder")
    # Only files can be lost, by tables and reports of the same name.
    files = [entry for entry in entries if entry.is_file() and not is_draft(entry)]
    runs = (run for folders in ("", "*/") for run in path.glob(f"{folders}seed-*/{CONFIG}"))
    if files and not any(runs):
        raise InputError(f"{path} is not empty and holds no runs; nothing in it was changed. Choose another folder")
    return path
