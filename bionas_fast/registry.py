"""The registry class of rules, operations, spaces, datasets, search methods and kinds of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from bionas_fast.errors import InputError, Unregistered, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to items: those of this package, then others in the order of registration.

    Args:
        kind: the kind of item in messages, such as ``"rule"``.
        owner: returns the class or function that defines an item; by default the item itself.
        builtin: for items of this package, the modules that register them; they are imported when an item is needed,
            so that its name is known without them.
    """

    def __init__(
        self, kind: str, owner: Callable[[T], Any] = lambda item: item, builtin: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self._owner = owner
        self._builtin = dict(builtin or {})
        self._items: dict[str, T] = {}

    def declare(self, modules: Mapping[str, str]) -> None:
        """Add names of this package, each with the module that registers it."""
        self._builtin |= modules

    def register(self, name: str, item: T) -> None:
        """Register an item under a name.

        An item of the same owner replaces the current one, as when a notebook cell is run again.

        Raises:
            InputError: the name belongs to another owner.
        """
        if name in self._builtin and self._owner(item).__module__ != self._builtin[name]:
            self.get(name)  # so that it is the item of this package that keeps the name
        if name in self._items:
            current, new = self._owner(self._items[name]), self._owner(item)
            if (current.__module__, current.__qualname__) != (new.__module__, new.__qualname__):
                raise InputError(
                    f"{self.kind} {name!r} is already registered by {current.__qualname__} of {current.__module__}"
                )
        self._items[name] = item

    def get(self, name: str) -> T:
        """Look up an item by its name.

        Raises:
            Unregistered: an unknown name; the message suggests similar ones.
        """
        if name not in self._items and name in self._builtin:
            import_module(self._builtin[name])
        if name not in self._items:
            raise unknown(self.kind, name, self.names(), error=Unregistered)
        return self._items[name]

    def names(self) -> tuple[str, ...]:
        """Return all names."""
        return tuple(dict.fromkeys((*self._builtin, *self._items)))

    def __contains__(self, name: object) -> bool:
        return name in self._items or name in self._builtin
