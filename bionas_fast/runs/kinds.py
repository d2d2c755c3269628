"""The registry of the kinds of run, by the name that config.yaml records as ``kind``.

What the command line says of a kind is known without its trainer, which needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from bionas_fast.config import RunConfig
    from bionas_fast.runs.trainer import Trainer

C = TypeVar("C", bound="type[RunConfig]")


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: its name.
        settings: the type of its settings.
        trainer_name: the class of its trainer, ``module:Class``.
        command: the command that begins and resumes it, ``bionas-fast COMMAND``.
        sources: the names that the command accepts for this kind of run instead of a genotype.
    """

    name: str
    settings: type[RunConfig]
    trainer_name: str
    command: str
    sources: tuple[str, ...] = ()

    @property
    def trainer(self) -> type[Trainer]:
        """The class of its trainer."""
        module, _, name = self.trainer_name.partition(":")
        found: Any = getattr(import_module(module), name)
        return found

    @property
    def trains_network(self) -> bool:
        """Whether it ends with a trained network."""
        return self.trainer.trains_network


_kinds: Registry[Kind] = Registry("kind of run", lambda kind: kind.settings)


def declare_kinds(modules: Mapping[str, str]) -> None:
    """Declare the kinds of run of this package, with the modules of their settings, imported when they are needed."""
    _kinds.declare(modules)


def register_kind(name: str, trainer: str, *, command: str, sources: tuple[str, ...] = ()) -> Callable[[C], C]:
    """Register a kind of run. Use as a decorator of the class of its settings; arguments as of :class:`Kind`.

    Raises:
        InputError: the name is taken by another class.
    """

    def register(settings: C) -> C:
        _kinds.register(name, Kind(name, settings, trainer, command, sources))
        return settings

    return register


def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds of run."""
    return _kinds.names()


def get_kind(name: str) -> Kind:
    """Look up a kind of run.

    Raises:
        InputError: no such kind; the message suggests the nearest names.
    """
    return _kinds.get(name)
