"""The class of all registries: rules, operations, spaces, datasets, search methods, kinds of run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from bionas_fast.errors import InputError, Unregistered, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Items by their names, in the order of registration.

    Args:
        kind: what a name stands for, as messages call it: ``"rule"``.
        owner: returns the class or function that an item comes from; by default the item itself.
    """

    def __init__(self, kind: str, owner: Callable[[T], Any] = lambda item: item) -> None:
        self.kind = kind
        self._owner = owner
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T) -> None:
        """Make an item known by a name.

        An item of the same owner replaces the present one, as when a notebook's cell runs again.

        Raises:
            InputError: the name belongs to another owner.
        """
        if name in self._items:
            present, new = self._owner(self._items[name]), self._owner(item)
            if (present.__module__, present.__qualname__) != (new.__module__, new.__qualname__):
                raise InputError(
                    f"{self.kind} {name!r} is already registered by {present.__qualname__} of {present.__module__}"
                )
        self._items[name] = item

    def get(self, name: str) -> T:
        """Return the item of that name.

        Raises:
            Unregistered: no such name; the message says the nearest ones.
        """
        if name not in self._items:
            raise unknown(self.kind, name, self._items, error=Unregistered)
        return self._items[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of registration."""
        return tuple(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items
