"""The kinds of run. Each is a trainer class that registers itself under the name that config.yaml has as ``kind``.

What belongs to a kind stands in its class: the type of its settings, the command that resumes it, the network of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from bionas_fast.runs.trainer import Trainer

T = TypeVar("T", bound="type[Trainer]")

_kinds: Registry[type[Trainer]] = Registry("kind of run")


def register_kind(trainer: T) -> T:
    """Make a kind of run known by the ``kind`` of its trainer. Usable as a decorator.

    Raises:
        InputError: the name is taken by another class.
    """
    _kinds.register(trainer.kind, trainer)
    return trainer


def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds of run, in the order of registration."""
    return _kinds.names()


def get_kind(name: str) -> type[Trainer]:
    """Return the trainer class of a kind of run.

    Raises:
        InputError: no such kind; the message says the nearest ones.
    """
    return _kinds.get(name)
