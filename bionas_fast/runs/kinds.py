"""The registry of the kinds of run: trainer classes, by the name that config.yaml records as ``kind``.

The class defines its type of settings, the command that resumes it, and the network of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from bionas_fast.runs.trainer import Trainer

T = TypeVar("T", bound="type[Trainer]")

_kinds: Registry[type[Trainer]] = Registry("kind of run")


def register_kind(trainer: T) -> T:
    """Register a kind of run under the ``kind`` of its trainer. Use as a decorator of the class.

    Raises:
        InputError: the name is taken by another class.
    """
    _kinds.register(trainer.kind, trainer)
    return trainer


def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds of run, in the order of registration."""
    return _kinds.names()


def get_kind(name: str) -> type[Trainer]:
    """Look up the trainer class of a kind of run.

    Raises:
        InputError: no such kind; the message suggests the nearest names.
    """
    return _kinds.get(name)
