"""The record of an attack on disk: one line for each batch, so that an interrupted attack continues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bionas_fast.choices import Gradient
from bionas_fast.errors import InputError
from bionas_fast.runs.files import create_folder, write_atomic
from bionas_fast.runs.lock import FolderLock

#: What was attacked and how, and the results of every batch.
ATTACK, OUTCOMES = "attack.json", "outcomes.jsonl"


@dataclass(frozen=True)
class Part:
    """A part of an attack: one attack through one gradient at one ε; see :class:`Outcome`."""

    attack: str
    gradient: Gradient | None
    eps: float | None


@dataclass(frozen=True)
class Done:
    """The result of a batch; the attributes are those of :class:`Outcome`."""

    correct: Tensor
    distances: Sequence[float]
    seconds: float


class Record:
    """The results of batches, in memory and, with a folder, on disk. Use :meth:`open` in a ``with`` statement."""

    def __init__(self, path: Path | None, done: dict[tuple[Part, int], Done]) -> None:
        self._path, self._done = path, done
        self._stack = ExitStack()

    @classmethod
    def open(cls, folder: str | Path | None, fingerprint: Mapping[str, Any]) -> Record:
        """Open the record in a folder, or begin one; without a folder, nothing is written.

        Raises:
            InputError: the folder holds something else, the record of another attack, or is in use.
        """
        if folder is None:
            return cls(None, {})
        path = Path(folder)
        create_folder(path)
        lock = FolderLock(path)
        try:
            record = cls(path / OUTCOMES, cls._begin(path, json.loads(json.dumps(fingerprint))))
        except BaseException:
            lock.release()
            raise
        record._stack.callback(lock.release)
        return record

    @staticmethod
    def _begin(path: Path, fingerprint: Mapping[str, Any]) -> dict[tuple[Part, int], Done]:
        head = path / ATTACK
        if not head.is_file():
            if any(entry.suffix in (".json", ".jsonl", ".yaml", ".pt") for entry in path.iterdir()):
                raise InputError(f"{path} holds other files; nothing in it was changed. Choose another folder")
            write_atomic(head, json.dumps(fingerprint, indent=2) + "\n")
            return {}
        try:
            recorded = json.loads(head.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{head}: cannot be read: {error}") from None
        if recorded != fingerprint:
            different = sorted(key for key in {*recorded, *fingerprint} if recorded.get(key) != fingerprint.get(key))
            raise InputError(
                f"{path} holds the results of another attack (other {', '.join(different)}); choose another folder"
            )
        return _read(path / OUTCOMES)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def read(self, part: Part, batch: int) -> Done | None:
        """Return the result of a batch, or None if it has not been attacked."""
        return self._done.get((part, batch))

    def add(self, part: Part, batch: int, correct: Tensor, distances: Sequence[float], seconds: float) -> Done:
        """Record the result of a batch."""
        done = self._done[part, batch] = Done(correct.cpu(), distances, seconds)
        if self._path is not None:
            row = {
                **vars(part),
                "batch": batch,
                "correct": "".join(str(int(bit)) for bit in done.correct),
                "distances": list(distances),
                "seconds": seconds,
            }
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return done


def _read(path: Path) -> dict[tuple[Part, int], Done]:
    """Read the lines of a record; a last line that was not written to its end is dropped."""
    done: dict[tuple[Part, int], Done] = {}
    if not path.is_file():
        return done
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        write_atomic(path, whole + "\n" if whole else "")
    for number, line in enumerate(whole.splitlines()):
        try:
            row = json.loads(line)
            part = Part(row["attack"], row["gradient"], row["eps"])
            correct = torch.tensor([bit == "1" for bit in row["correct"]])
            done[part, int(row["batch"])] = Done(correct, row["distances"], float(row["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number + 1} is damaged: {error}") from None
    return done
