"""Registration of the ops with the counters of floating-point operations that users know.

These are ``torch.utils.flop_counter.FlopCounterMode``, which sees the ops that run, and fvcore's ``FlopCountAnalysis``,
which sees those of ``torch.jit.trace``. Both are slow to import, so the ops are registered once a counter is imported.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch

from bionas_fast.imports import after_import

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


def convolution(input: Any, weight: Any, out: Any, transposed: bool = False) -> int:
    """Count the operations of a convolution as FlopCounterMode does, from tensors or their shapes."""
    formula = _registry()[torch.ops.aten.convolution]
    return formula(input, weight, None, [], [], [], transposed, out_val=out)


def convolution_backward(grad: Any, input: Any, weight: Any, mask: Sequence[bool], transposed: bool = False) -> int:
    """Count the operations of a convolution's backward pass as FlopCounterMode does."""
    formula = _registry()[torch.ops.aten.convolution_backward]
    out = (input, weight, None)
    return formula(grad, input, weight, None, [], [], [], transposed, [], 1, list(mask), out_val=out)


def _registry() -> dict[Any, Formula]:
    return sys.modules[_TORCH].flop_registry


def declare_traced(name: str, layer: str, transposed: bool = False) -> None:
    """Register an op with fvcore's counters of multiplications and of activations.

    Args:
        name: the qualified name of the op. Its first arguments are an input and a weight.
        layer: the name of the corresponding layer in fvcore's tables, ``conv`` or ``linear``; empty to ignore the op.
        transposed: whether the weight is [inputs, outputs, ...], with a product for each position of the input.
    """

    def multiplications(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        positions = inputs[0] if transposed else outputs[0]
        _, *others = inputs[1].type().sizes()
        return Counter({layer: prod(positions.type().sizes()) * prod(others)})

    def activations(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        return Counter({layer: prod(outputs[0].type().sizes())})

    for module, count in zip(_FVCORE, (multiplications, activations), strict=True):
        after_import(module, _supporting(name, count if layer else None))


def _supporting(name: str, count: Callable[..., Counter[str]] | None) -> Callable[[ModuleType], None]:
    def register(counter: ModuleType) -> None:
        counter._DEFAULT_SUPPORTED_OPS[name] = count

    return register
