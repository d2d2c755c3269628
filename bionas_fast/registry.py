"""The registry behind every kind of name that users can add to: rules, operations, spaces, data sets, methods."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from bionas_fast.errors import InputError, Unregistered, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Things by their names, in the order of registration.

    Args:
        kind: what a name names, as messages say it: ``"rule"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._owners: dict[str, Any] = {}

    def register(self, name: str, item: T, owner: Any = None) -> None:
        """Make an item known by a name.

        Args:
            owner: the class or function that the item comes from; by default the item itself. A name is free for its
                owner to take again, as when a notebook's cell runs again.

        Raises:
            InputError: the name belongs to another owner.
        """
        owner = item if owner is None else owner
        present = self._owners.get(name, owner)
        if (present.__module__, present.__qualname__) != (owner.__module__, owner.__qualname__):
            raise InputError(
                f"{self.kind} {name!r} is already registered by {present.__qualname__} of {present.__module__}"
            )
        self._items[name], self._owners[name] = item, owner

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
