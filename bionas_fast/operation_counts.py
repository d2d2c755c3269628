"""Registration of the ops with the counters of floating-point operations that users know.

These are ``torch.utils.flop_counter.FlopCounterMode``, which sees the ops that run, and fvcore's ``FlopCountAnalysis``,
which sees those of ``torch.jit.trace``. Both are slow to import, so the ops are registered once a counter is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

_TORCH = "torch.utils.flop_counter"
_FVCORE = ("fvcore.nn.flop_count", "fvcore.nn.activation_count")

#: Number of operations of a call: the op's arguments and, as ``out_val``, its result.
Formula = Callable[..., int]


def declare(ops: Callable[[], dict[Any, Formula]]) -> None:
    """Register formulas with FlopCounterMode.

    Args:
        ops: returns the formula of each op, an attribute of ``torch.ops.<namespace>``.
    """

    def register(counter: ModuleType) -> None:
        for op, formula in ops().items():
            counter.register_flop_formula(op, get_raw=True)(formula)

    after_import(_TORCH, register)


def convolution(input: Any, weight: Any, out: Any) -> int:
    """Count the operations of a convolution as FlopCounterMode does."""
    formula = _registry()[torch.ops.aten.convolution]
    return formula(input, weight, None, [], [], [], False, out_val=out)


def convolution_backward(grad: Any, input: Any, weight: Any, mask: Sequence[bool]) -> int:
    """Count the operations of a convolution's backward pass as FlopCounterMode does."""
    formula = _registry()[torch.ops.aten.convolution_backward]
    out = (input, weight, None)
    return formula(grad, input, weight, None, [], [], [], False, [], 1, list(mask), out_val=out)


def _registry() -> dict[Any, Formula]:
    return sys.modules[_TORCH].flop_registry


def declare_traced(name: str, layer: str) -> None:
    """Register an op with fvcore's counters of multiplications and of activations.

    Args:
        name: the qualified name of the op. Its first arguments are an input and a weight, [outputs, inputs, ...].
        layer: the name of the corresponding layer in fvcore's tables, ``conv`` or ``linear``; empty to ignore the op.
    """

    def multiplications(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        _, *per_output = inputs[1].type().sizes()
        return Counter({layer: prod(outputs[0].type().sizes()) * prod(per_output)})

    def activations(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        return Counter({layer: prod(outputs[0].type().sizes())})

    for module, count in zip(_FVCORE, (multiplications, activations), strict=True):
        after_import(module, _supporting(name, count if layer else None))


def _supporting(name: str, count: Callable[..., Counter[str]] | None) -> Callable[[ModuleType], None]:
    def register(counter: ModuleType) -> None:
        counter._DEFAULT_SUPPORTED_OPS[name] = count

    return register


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
