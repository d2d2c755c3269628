"""Registries that tests add to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bionas_fast import rules
from bionas_fast.data import names as data
from bionas_fast.searching import names as searching
from bionas_fast.space import names as space

REGISTRIES = (rules._registry, space.operations, space.spaces, data.registry, searching.registry)


def load() -> None:
    """Import the modules that register what this package has, which would otherwise happen on first use."""
    for registry in REGISTRIES:
        for name in registry.names():
            registry.get(name)


def snapshot() -> Callable[[], None]:
    """Return a function that forgets whatever is registered from now on."""
    load()
    before = [dict(registry._items) for registry in REGISTRIES]

    def restore() -> None:
        for registry, items in zip(REGISTRIES, before, strict=True):
            registry._items = dict(items)

    return restore


@contextmanager
def restored() -> Iterator[None]:
    """Forget at the end what is registered inside the block."""
    restore = snapshot()
    try:
        yield
    finally:
        restore()
