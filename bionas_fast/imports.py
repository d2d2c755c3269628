"""Reactions to the import of optional packages, which are too slow to be imported here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


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
