"""Imports on first use, and reactions to the import of optional packages: what is too slow to be imported here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def on_first_use(package: str, public: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose public names are imported on first use (PEP 562).

    The package also imports the names under ``TYPE_CHECKING``, for type checkers and editors, and lists them in
    ``__all__``. No name may be that of a module of the package, which would take its place once it is imported.

    Args:
        package: the name of the package.
        public: by the modules of the package, the public names that they define; under the empty name, the modules that
            are public themselves.
    """
    homes = {name: module for module, names in public.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not homes[name]:
            return import_module(f"{package}.{name}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names


def after_import(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call ``function`` with a module once it has been imported; now, if it is."""
    module = sys.modules.get(name)
    if module is not None:
        function(module)
        return
    for finder in sys.meta_path:
        if isinstance(finder, _Watch) and finder.name == name:
            finder.functions.append(function)
            return
    sys.meta_path.insert(0, _Watch(name, [function]))


class _Watch(MetaPathFinder):
    """Finder of one module, through the other finders, that calls functions once the module has been executed."""

    def __init__(self, name: str, functions: list[Callable[[ModuleType], None]]) -> None:
        self.name = name
        self.functions = functions

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Followed(spec.loader, self.functions)
        return spec


class _Followed(Loader):
    """The loader of a module, which then calls functions."""

    def __init__(self, loader: Loader, functions: Iterable[Callable[[ModuleType], None]]) -> None:
        self.loader = loader
        self.functions = functions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        for function in self.functions:
            function(module)
