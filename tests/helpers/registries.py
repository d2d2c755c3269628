"""Registries that tests add to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bionas_fast import rules
from bionas_fast.data import registry as data
from bionas_fast.searching import methods
from bionas_fast.space import candidates

REGISTRIES = (rules._registry, candidates._operations, candidates._spaces, data._registry, methods._registry)


def snapshot() -> Callable[[], None]:
    """Return a function that forgets whatever is registered from now on."""
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
