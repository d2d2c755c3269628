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
from bionas_fast.runs.checkpoint import expect_run
from bionas_fast.runs.files import is_draft
from bionas_fast.runs.folder import CHECKPOINT, REPORT, NewFolder, RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.seeds import SeedTable, Series
from bionas_fast.runs.summary import accuracy_of
from bionas_fast.runs.terminal import listener
from bionas_fast.runs.trainer import Trainer
from bionas_fast.runtime import distributed


@dataclass(frozen=True)
class Result:
    """The result of a complete run.

    Attributes:
        accuracy: its accuracy in percent.
        share: the share of the weights that learn by back-propagation, in percent; None for a run without a network.
    """

    accuracy: float
    share: float | None


@dataclass(frozen=True)
class PlannedRun:
    """A run that is to be complete in a folder: begun, resumed, or there already.

    Attributes:
        trainer: its kind of run.
        config: its settings.
        start: begins or resumes it: ``start(config, out=…, resume=…, progress=…)``.
        files: the files besides the settings that define the run, such as its genotype, and their content.
    """

    trainer: type[Trainer]
    config: RunConfig
    start: Callable[..., object]
    files: Mapping[str, str] = field(default_factory=dict)

    def complete(self, path: Path, progress: Progress) -> Result:
        """Run to the end, unless that has been done, and return the result.

        Raises:
            InputError: the folder holds another run, or one that is in use or damaged; the run cannot continue.
            Interrupted: the run was interrupted, and is saved.
        """
        result = self._result(path)
        if result is None:
            begun = distributed.broadcast(os.path.isfile(path / CONFIG))
            self.start(self.config, **{"resume" if begun else "out": path}, progress=progress)
            result = self._result(path)
        if result is None:
            raise InputError(f"{path}: the run has no accuracy")
        return result

    def _result(self, path: Path) -> Result | None:
        """Read the result of the complete run in a folder; None for another state of the run."""

        def read() -> Result | None:
            return self._read(path) if distributed.is_main() else None

        return distributed.broadcast(distributed.run_on_all_ranks(read))

    def _read(self, path: Path) -> Result | None:
        if not os.path.isfile(path / CONFIG) or not os.path.isfile(path / CHECKPOINT):
            return None
        folder = RunFolder.open(path)
        state = folder.read_checkpoint()
        try:
            expect_run(state, self.trainer.kind, self.config)
        except InputError as error:
            raise error.at(str(path)) from None
        for name, content in self.files.items():
            if folder.file(name).read_text(encoding="utf-8", errors="replace") != content:
                raise InputError(f"{path}: its {name} is not the one of this comparison; choose another folder")
        try:
            row = self.trainer.final_row(state)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(f"{path / CHECKPOINT}: not the state of a run: {error!r:.200}") from None
        # The report is written after the last checkpoint.
        reported = self.trainer.write_report is Trainer.write_report or os.path.isfile(path / REPORT)
        accuracy = accuracy_of(row) if row is not None and reported else None
        return None if accuracy is None else Result(accuracy, self.trainer.share_of_bp(folder, folder.read()))


@dataclass(frozen=True)
class Variant:
    """A run that is repeated over seeds.

    Attributes:
        name: its name in tables.
        runs: the run of each seed.
        folder: folder of its runs within that of all variants.
        baseline: the name of the variant that it is compared with besides the first one; empty for none.
    """

    name: str
    runs: Mapping[int, PlannedRun]
    folder: str = ""
    baseline: str = ""

    def path(self, out: Path, seed: int) -> Path:
        """Return the folder of the run of a seed."""
        return out / self.folder / f"seed-{seed}"


def repeat(
    variants: Sequence[Variant],
    out: str | Path | NewFolder,
    *,
    metric: str,
    progress: Progress | bool | None = None,
    write: Callable[[SeedTable, Path], object] = SeedTable.write,
) -> SeedTable:
    """Complete the runs of all variants, in ``out/FOLDER/seed-N``; complete runs are read, stopped ones resumed.

    All variants run with a seed before the next seed begins, in ascending order. The table is written after every run.
    A run whose numbers are no longer finite is recorded as a failure of the table, and the others go on.

    Args:
        variants: the runs; the table compares each variant with the first one.
        out: the folder: new, empty, or that of an earlier call.
        metric: the accuracy in the table, with its unit.
        progress: receives the progress of each run and its result; True shows it on stderr.
        write: writes a table into the folder.

    Returns:
        The table of the accuracies.

    Raises:
        InputError: the folder is used otherwise; a run cannot begin, continue or be read.
        Interrupted: after Ctrl-C or SIGTERM. The runs are saved; the same call continues them.
    """
    progress = listener(progress)
    with distributed.process_group():
        path = distributed.broadcast(distributed.run_on_all_ranks(lambda: _make(out)))
        results: list[dict[int, Result]] = [{} for _ in variants]
        failures: list[dict[int, str]] = [{} for _ in variants]
        for seed in sorted({seed for variant in variants for seed in variant.runs}):
            for number, variant in enumerate(variants):
                if seed not in variant.runs:
                    continue
                with _continued(path, variant, seed):
                    try:
                        result = variant.runs[seed].complete(variant.path(path, seed), progress)
                        results[number][seed] = result
                        progress.result(variant.name, seed, result.accuracy)
                    except Diverged as error:
                        failures[number][seed] = str(error)
                series = (_series(*own) for own in zip(variants, results, failures, strict=True))
                table = SeedTable(metric, tuple(series), path)
                if distributed.is_main():
                    write(table, path)
    return table


def _series(variant: Variant, results: Mapping[int, Result], failures: Mapping[int, str]) -> Series:
    shares = {seed: result.share for seed, result in results.items() if result.share is not None}
    values = {seed: result.accuracy for seed, result in results.items()}
    return Series(variant.name, values, shares, dict(failures), variant.baseline)


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
