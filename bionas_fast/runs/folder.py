"""The folder of a run: files are written atomically, by one process at a time."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import yaml

from bionas_fast.config import CONFIG, Duration, RunRecord
from bionas_fast.errors import InputError, expect_type
from bionas_fast.runs.files import is_draft, write_atomic
from bionas_fast.runs.lock import HOLDER, LOCK, FolderLock
from bionas_fast.runtime.machine import machine

if TYPE_CHECKING:
    import numpy as np

METRICS = "metrics.jsonl"
LAYERS = "layers.jsonl"
ALPHAS = "alphas.npz"
CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
GENOTYPE = "genotype.json"
GENOTYPES = "genotypes.jsonl"
REPORT = "report.html"
EVALUATION = "evaluation.json"


#: The entry of the duration in a run's configuration.
_DURATION = re.compile(r"^duration:\n(?: .*\n?)*", re.MULTILINE)


@dataclass(frozen=True)
class NewFolder:
    """A run folder that :meth:`RunFolder.create` names: ``runs/NAME-TIME``, with a number if that is taken."""

    name: str

    def make(self) -> Path:
        """Create the folder. Processes that do so at the same time, on any machine, get different ones."""
        word = re.sub(r"[^\w.-]+", "-", self.name)[:150]  # the name of a dataset may contain a path
        stamped = Path("runs") / f"{word}-{datetime.now():%Y%m%d-%H%M%S}"
        stamped.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = stamped if number == 1 else stamped.with_name(f"{stamped.name}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
        raise AssertionError("unreachable")


#: The folder of a run: a path, new or empty; None for one under ``runs/``; False for none, nothing is written.
Out = str | Path | NewFolder | Literal[False] | None


def run_folder(out: Out, resume: str | Path | None, name: Callable[[], str]) -> str | Path | NewFolder | None:
    """Return the folder of a run, or None for a run that writes nothing or is resumed.

    Args:
        out: the folder that was asked for.
        resume: the folder of the run to resume, if there is one; it needs no other.
        name: names the folder where ``out`` is None.
    """
    if out is None:
        return NewFolder(name()) if resume is None else None
    return None if out is False else out


class RunFolder:
    """An existing run folder. Use :meth:`create` for a new one and :meth:`open` for an old one.

    A process that writes to the folder holds its lock, from :meth:`create` or :meth:`lock` to the end of a ``with``
    block or :meth:`unlock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    @classmethod
    def create(cls, path: str | Path | NewFolder) -> RunFolder:
        """Create the folder and lock it.

        Raises:
            InputError: the folder is not empty, not a folder, locked by another process, or not writable.
        """
        try:
            if isinstance(path, NewFolder):
                folder = cls(path.make())
            else:
                folder = cls(Path(path))
                folder._require_empty()
                folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            place = f"runs/{path.name}" if isinstance(path, NewFolder) else path
            raise InputError(f"cannot write to {place}: {error.strerror or error}") from None
        folder.lock()
        folder._require_empty()  # another process may have written to it before the lock
        return folder

    def _require_empty(self) -> None:
        # Ignore leftovers of a process that was killed before it wrote anything.
        if self.path.is_dir() and any(p.name not in (LOCK, HOLDER) and not is_draft(p) for p in self.path.iterdir()):
            self.unlock()
            resume = ", or resume the run in it: --resume" if (self.path / CONFIG).is_file() else ""
            raise InputError(f"{self.path} is not empty; nothing in it was changed. Choose another folder{resume}")

    def lock(self) -> RunFolder:
        """Lock the folder against other processes, and remove drafts left by killed ones.

        Raises:
            InputError: the folder is locked by another process, or not writable.
        """
        self._lock = FolderLock(self.path)
        with contextlib.suppress(OSError):
            for path in filter(is_draft, list(self.path.iterdir())):
                path.unlink()
        return self

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.unlock()

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the folder of an existing run.

        Raises:
            InputError: there is no such folder, or it holds no run.
        """
        expect_type("run", path, (str, os.PathLike), "give the folder of a run")
        path = Path(path)
        # os.path, because Path raises on a folder without read permission.
        if not os.path.isdir(path):
            raise InputError(f"no run folder {path}")
        if not os.path.isfile(path / CONFIG):
            raise InputError(f"{path} holds no run: it has no {CONFIG}")
        return cls(path)

    def read(self) -> RunRecord:
        """Read the description of the run.

        Raises:
            InputError: the description cannot be read.
        """
        return RunRecord.read(self.file(CONFIG))

    def file(self, name: str) -> Path:
        """Return the path of one of the run's files.

        Raises:
            InputError: the run does not have it.
        """
        path = self.path / name
        if not os.path.isfile(path):
            raise InputError(f"run {self.path} has no {name}")
        return path

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file atomically."""
        write_atomic(self.path / name, content)

    def write_config(
        self,
        kind: str,
        settings: Mapping[str, Any],
        *,
        plugins: Sequence[str] = (),
        network: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the description of the run, including this machine, for :meth:`read`.

        Args:
            kind: the kind of run, such as ``search`` or ``train``.
            settings: all settings, as plain values.
            plugins: the names of the modules that the run imports.
            network: the arguments of the network that follow from the data.
        """
        shape = {} if network is None else {"network": dict(network)}
        content = {"kind": kind, **settings, "plugins": list(plugins), **shape, "machine": machine()}
        self.write(CONFIG, yaml.safe_dump(content, sort_keys=False))

    def write_duration(self, duration: Duration) -> None:
        """Replace the duration in the description of the run."""
        others = _DURATION.sub("", (self.path / CONFIG).read_text(encoding="utf-8")).rstrip("\n")
        entry = yaml.safe_dump({"duration": duration.entry()}, sort_keys=False)
        self.write(CONFIG, f"{others}\n{entry}")

    def write_metrics(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics, one line of JSON per epoch."""
        self.write_rows(METRICS, metrics)

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a file of rows, one line of JSON each."""
        self.write(name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def write_alphas(self, alphas: Mapping[str, Sequence[np.ndarray]], candidates: Sequence[str]) -> None:
        """Write the alphas at the start and after every epoch, [epochs+1, edges, candidates] for each kind of cell."""
        import numpy as np

        buffer = io.BytesIO()
        stacked = {kind: np.stack(rows) for kind, rows in alphas.items()}
        np.savez_compressed(buffer, allow_pickle=False, candidates=np.array(candidates), **stacked)
        self.write(ALPHAS, buffer.getvalue())

    def write_checkpoint(self, state: Mapping[str, Any], *, best: bool = False) -> None:
        """Write the state of a run, tensors and plain values only; with ``best``, also as the best checkpoint."""
        from bionas_fast.runs import checkpoint

        data = checkpoint.pack(state)
        if best:
            self.write(BEST, data)
        self.write(CHECKPOINT, data)

    def read_checkpoint(self, *, best: bool = False) -> dict[str, Any]:
        """Read the last checkpoint, or the best one, onto the CPU.

        Raises:
            InputError: the checkpoint is missing, damaged or foreign. The message names the best one if it is intact.
        """
        from bionas_fast.runs import checkpoint

        if best:
            if not os.path.isfile(self.path / BEST):
                raise InputError(f"run {self.path} has no {BEST}: it held out no images (valid_fraction)")
            return checkpoint.unpack(self.file(BEST))
        path = self.file(CHECKPOINT)
        try:
            return checkpoint.unpack(path)
        except InputError as error:
            raise InputError(f"{error}{self.recovery_hint()}") from None

    def recovery_hint(self) -> str:
        """Recovery hint appended to errors about an unusable checkpoint."""
        from bionas_fast.runs import checkpoint

        unchanged = f"; nothing in {self.path} was changed"
        try:
            epoch = checkpoint.unpack(self.path / BEST)["epoch"]
        except (InputError, KeyError):
            return unchanged
        return f"{unchanged}. {BEST}, of the end of epoch {epoch}, is whole: copy it over {CHECKPOINT} and resume"

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the metrics, one mapping per epoch; errors as of :meth:`read_rows`."""
        return self.read_rows(METRICS)

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Read a file of rows.

        Raises:
            InputError: the file is missing, or a line is damaged.
        """
        rows = []
        for number, line in enumerate(self.file(name).read_text().splitlines(), start=1):
            try:
                rows.append(json.loads(line, parse_constant=_refused))
            except ValueError:
                raise InputError(f"{self.path / name}, line {number}: not JSON") from None
        return rows


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
