"""The folder of a run: every file written whole or not at all."""

from __future__ import annotations

import io
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from bionas_fast.errors import InputError
from bionas_fast.files import write_atomic

CONFIG, METRICS, ALPHAS = "config.yaml", "metrics.jsonl", "alphas.npz"
CHECKPOINT, GENOTYPE, REPORT = "checkpoint.pt", "genotype.json", "report.html"


class RunFolder:
    """An existing run folder. Use :meth:`create` for a new one and :meth:`open` for an old one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Make the folder.

        Raises:
            InputError: it exists and holds something, is no folder, or cannot be written.
        """
        path = Path(path)
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path} is not empty; nothing in it was changed. Choose another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror or error}") from None
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open a folder that holds a run.

        Raises:
            InputError: there is no such folder, or it holds no run.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"no run folder {path}")
        if not (path / CONFIG).is_file():
            raise InputError(f"{path} holds no run: it has no {CONFIG}")
        return cls(path)

    def file(self, name: str) -> Path:
        """The path of one of the run's files.

        Raises:
            InputError: the run does not have it.
        """
        path = self.path / name
        if not path.is_file():
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

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Everything needed to go on: tensors and plain values only, so that loading executes no code."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.write(CHECKPOINT, buffer.getvalue())

    def read_checkpoint(self) -> dict[str, Any]:
        """What :meth:`write_checkpoint` wrote, on the CPU.

        Raises:
            InputError: there is none, or it is damaged or foreign.
        """
        path = self.file(CHECKPOINT)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a damaged file torch warns before it raises
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly anything for a damaged file
            raise InputError(f"{path} is damaged or no checkpoint: {str(error).partition(chr(10))[0]}") from None
        if not isinstance(state, dict):
            raise InputError(f"{path} is no checkpoint of a run")
        return state

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
    stamped = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
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
