"""The names of search methods; those of this package are known without the modules that implement them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bionas_fast.errors import InputError
from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from bionas_fast.searching.method import SearchMethod

M = TypeVar("M", bound="type[SearchMethod]")

_SEARCHING = "bionas_fast.searching"
registry: Registry[type[SearchMethod]] = Registry(
    "method",
    builtin={
        "darts": f"{_SEARCHING}.darts",
        "darts2": f"{_SEARCHING}.darts2",
        "eg": f"{_SEARCHING}.eg",
        "eg-published": f"{_SEARCHING}.eg_published",
        "evolution": f"{_SEARCHING}.evolution",
        "random": f"{_SEARCHING}.random_search",
    },
)


def register_method(name: str) -> Callable[[M], M]:
    """Register a search method under a name. Use as a decorator of a subclass of :class:`SearchMethod`.

    Raises:
        InputError: the name is not lower-case letters, digits and hyphens, or is taken by another class.
    """
    if not name.replace("-", "").isalnum() or name != name.lower():
        raise InputError(f"a method's name must be lower-case, such as 'eg-published', not {name!r}")

    def register(method: M) -> M:
        registry.register(name, method)
        return method

    return register


def method_names() -> tuple[str, ...]:
    """Return the names of all registered methods, in the order of registration."""
    return registry.names()


def get_method(name: str) -> type[SearchMethod]:
    """Look up a search method by its name.

    Raises:
        InputError: no such method; the message suggests the nearest names.
    """
    return registry.get(name)
