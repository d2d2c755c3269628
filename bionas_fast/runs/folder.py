"""The folder of a run: every file written whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import yaml

from bionas_fast.config import CONFIG
from bionas_fast.errors import InputError
from bionas_fast.runs import checkpoint
from bionas_fast.runs.files import Held, is_draft, write_atomic

METRICS, ALPHAS = "metrics.jsonl", "alphas.npz"
CHECKPOINT, BEST, GENOTYPE, REPORT = "checkpoint.pt", "best.pt", "genotype.json", "report.html"
#: Held by the process that works in the folder; what it says is for people.
LOCK = ".lock"


class RunFolder:
    """An existing run folder. Use :meth:`create` for a new one and :meth:`open` for an old one.

    Who writes into it holds it, from :meth:`create` or :meth:`hold` to the end of a ``with`` block or :meth:`close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Held | None = None

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Make the folder and hold it.

        Raises:
            InputError: it exists and holds something, is no folder, is held by another process, or cannot be written.
        """
        folder = cls(Path(path))
        try:
            folder._expect_empty()
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror or error}") from None
        folder.hold()
        folder._expect_empty()  # another process may have been here in between
        return folder

    def _expect_empty(self) -> None:
        # What a process left that was killed before it wrote anything does not count.
        if self.path.is_dir() and any(p.name != LOCK and not is_draft(p) for p in self.path.iterdir()):
            self.close()
            resume = ", or go on with the run in it: --resume" if (self.path / CONFIG).is_file() else ""
            raise InputError(f"{self.path} is not empty; nothing in it was changed. Choose another folder{resume}")

    def hold(self) -> RunFolder:
        """Keep other processes from working in the folder, and remove what killed ones left half-written.

        Raises:
            InputError: another process works in it, or it cannot be written.
        """
        self._lock = Held(self.path / LOCK)
        with contextlib.suppress(OSError):
            for path in filter(is_draft, list(self.path.iterdir())):
                path.unlink()
        return self

    def close(self) -> None:
        """Let other processes work in the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open a folder that holds a run.

        Raises:
            InputError: there is no such folder, or it holds no run.
        """
        path = Path(path)
        # os.path, because Path raises where a folder may not be read.
        if not os.path.isdir(path):
            raise InputError(f"no run folder {path}")
        if not os.path.isfile(path / CONFIG):
            raise InputError(f"{path} holds no run: it has no {CONFIG}")
        return cls(path)

    def file(self, name: str) -> Path:
        """The path of one of the run's files.

        Raises:
            InputError: the run does not have it.
        """
        path = self.path / name
        if not os.path.isfile(path):
            raise InputError(f"run {self.path} has no {name}")
        return path

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file whole or not at all."""
        write_atomic(self.path / name, content)

    def write_config(self, kind: str, settings: Mapping[str, Any], **notes: Any) -> None:
        """The complete settings with what they ran on; ``kind`` says what the run is (``search``, ``train``)."""
        self.write(CONFIG, yaml.safe_dump({"kind": kind, **settings, **notes, "machine": machine()}, sort_keys=False))

    def write_metrics(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """One line of JSON for every epoch."""
        self.write(METRICS, "".join(json.dumps(row) + "\n" for row in metrics))

    def write_alphas(self, alphas: Mapping[str, Sequence[np.ndarray]], candidates: Sequence[str]) -> None:
        """The alphas at the start and after every epoch, [epochs+1, edges, candidates] for each kind of cell."""
        buffer = io.BytesIO()
        stacked = {kind: np.stack(rows) for kind, rows in alphas.items()}
        np.savez_compressed(buffer, allow_pickle=False, candidates=np.array(candidates), **stacked)
        self.write(ALPHAS, buffer.getvalue())

    def write_checkpoint(self, state: Mapping[str, Any], *, best: bool = False) -> None:
        """Everything needed to go on: tensors and plain values only; with ``best`` kept as the best one, too."""
        data = checkpoint.pack(state)
        if best:
            self.write(BEST, data)
        self.write(CHECKPOINT, data)

    def read_checkpoint(self) -> dict[str, Any]:
        """What :meth:`write_checkpoint` wrote, on the CPU.

        Raises:
            InputError: there is none, or it is damaged or foreign. The message names the best one, if that is whole.
        """
        path = self.file(CHECKPOINT)
        try:
            return checkpoint.unpack(path)
        except InputError as error:
            raise InputError(f"{error}{self.way_out()}") from None

    def way_out(self) -> str:
        """What to do about a checkpoint that cannot be used, to be put behind a message that says so."""
        kept = f"; nothing in {self.path} was changed"
        try:
            epoch = checkpoint.unpack(self.path / BEST)["epoch"]
        except (InputError, KeyError):
            return kept
        return f"{kept}. {BEST}, of the end of epoch {epoch}, is whole: copied over {CHECKPOINT} it can be gone on from"

    def read_metrics(self) -> list[dict[str, Any]]:
        """One mapping for every epoch.

        Raises:
            InputError: there are none, or a line is damaged.
        """
        rows = []
        for number, line in enumerate(self.file(METRICS).read_text().splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise InputError(f"{self.path / METRICS}, line {number}: not JSON") from None
        return rows


def new_path(name: str) -> Path:
    """A path under ``runs/`` that does not exist yet: the name and the time."""
    word = re.sub(r"[^\w.-]+", "-", name)[:150]  # a data set's name may hold a path
    stamped = Path("runs") / f"{word}-{datetime.now():%Y%m%d-%H%M%S}"
    path, count = stamped, 1
    while path.exists():
        count += 1
        path = stamped.with_name(f"{stamped.name}-{count}")
    return path


def machine() -> dict[str, str]:
    """What this process runs on: versions, processor, accelerator."""
    packages = {name: _version(name) for name in ("bionas-fast", "torch", "torchvision", "triton", "numpy")}
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        **packages,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "accelerator": accelerator,
        "command": " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv)),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
