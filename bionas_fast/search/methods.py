"""The search methods by their names, and what each of them needs of the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bionas_fast.errors import InputError, unknown
from bionas_fast.registry import Registry
from bionas_fast.search.config import SearchConfig
from bionas_fast.search.method import SearchMethod
from bionas_fast.space import get_space
from bionas_fast.space.genotype import fixed_rules
from bionas_fast.supernet import ENGINES
from bionas_fast.supernet.architecture import skip_share

M = TypeVar("M", bound=type[SearchMethod])

_registry: Registry[type[SearchMethod]] = Registry("method")


def register_method(name: str) -> Callable[[M], M]:
    """Make a search method known by its name. A decorator for a subclass of :class:`SearchMethod`.

    Raises:
        InputError: the name is not lower-case letters, digits and hyphens, or is taken by another class.
    """
    if not name.replace("-", "").isalnum() or name != name.lower():
        raise InputError(f"a method's name must be lower-case, such as 'eg-published', not {name!r}")

    def register(method: M) -> M:
        _registry.register(name, method)
        return method

    return register


def method_names() -> tuple[str, ...]:
    """Return the names of all registered methods, in the order of registration."""
    return _registry.names()


def get_method(name: str) -> type[SearchMethod]:
    """Return the search method of that name.

    Raises:
        InputError: no such method; the message says the nearest ones.
    """
    return _registry.get(name)


def method_options() -> tuple[str, ...]:
    """Return the settings that some methods use and others do not."""
    return tuple(sorted({option for name in method_names() for option in get_method(name).options}))


def check(config: SearchConfig) -> None:
    """Check all that depends on registered names, before anything is built.

    The configuration's validators cannot: a plugin may bring any of the names, and none is imported, which would run
    its code, because somebody reads or copies settings. By now they are.

    Raises:
        InputError: an unknown name, a setting that the method has no use for, settings that the space cannot meet.
    """
    method = get_method(config.method)
    for name in method_options():
        value, default = getattr(config, name), SearchConfig.model_fields[name].default
        if value != default and name not in method.options:
            raise InputError(f"{name}: method {config.method} has no use for it; got {value!r}")
    if config.engine not in ENGINES:
        raise unknown("engine", config.engine, ENGINES)
    space = get_space(config.space).restricted(config.rules, config.operations)
    fixed_rules(config.fixed)
    if config.auxiliary_skip:
        skip_share(space)
