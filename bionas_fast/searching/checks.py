"""Checks of the settings of a search that depend on registered names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bionas_fast.errors import InputError, unknown
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.names import get_method, method_names
from bionas_fast.space import get_space
from bionas_fast.space.genotype import fixed_rules
from bionas_fast.supernet import ENGINES
from bionas_fast.supernet.architecture import skip_share


def method_options() -> tuple[str, ...]:
    """Return the names of the settings that only some methods use."""
    return tuple(sorted({option for name in method_names() for option in get_method(name).options}))


def over_preset(preset: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings with those of a preset, over which they take precedence.

    If they name the method, what that method does not use is left out of the preset.
    """
    method = settings.get("method")
    unused = {*method_options()} - {*get_method(method).options} if method in method_names() else set()
    return {name: value for name, value in preset.items() if name not in unused} | dict(settings)


def check(config: SearchConfig) -> None:
    """Check the settings that depend on registered names, before anything is built.

    The validators of the configuration cannot do this: a plugin may register any of the names, and merely reading or
    copying settings must not import plugins, which would run their code. At this point they have been imported.

    Raises:
        InputError: an unknown name, a setting that the method does not use, settings that do not fit the space.
    """
    method = get_method(config.method)
    for name in method_options():
        value, default = getattr(config, name), SearchConfig.model_fields[name].default
        if value != default and name not in method.options:
            users = ", ".join(other for other in method_names() if name in get_method(other).options)
            raise InputError(f"{name}: method {config.method} has no use for it, but {users}; got {value!r}")
    if config.engine not in ENGINES:
        raise unknown("engine", config.engine, ENGINES)
    space = get_space(config.space).restricted(config.rules, config.operations)
    fixed_rules(config.fixed)
    if config.auxiliary_skip:
        skip_share(space)
