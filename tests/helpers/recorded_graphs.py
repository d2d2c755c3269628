"""CUDA graphs on the CPU: what a step did is recorded operator by operator, and repeated on the same tensors.

As on a card, nothing of the captured step happens at the time of capture, Python does not run again, and a step that
reads a number from the device cannot be captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bionas_fast.runtime.graphs import Function, Recorded

#: Operators by which the host waits for the device.
WAITS = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero"}
#: Arguments that operators change although their schemas do not say so.
UNDECLARED = {("aten::native_batch_norm", name) for name in ("running_mean", "running_var")}


def _tensors(value: Any) -> list[Tensor]:
    return [one for one in tree_leaves(value) if isinstance(one, Tensor)]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = function._schema
        if schema.name.split("::")[1] in WAITS:
            raise RuntimeError(f"{schema.name}: operation not permitted when stream is capturing")
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
        for argument in schema.arguments:
            changed = argument.alias_info is not None and argument.alias_info.is_write
            if changed or (schema.name, argument.name) in UNDECLARED:
                for tensor in _tensors(given.get(argument.name)):
                    self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        out = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, out))
        return out

    def undo(self) -> None:
        """Restore what was changed in place; nothing of a captured step happens."""
        for tensor, value in self.before.values():
            tensor.copy_(value)

    def replay(self) -> None:
        for function, args, kwargs, out in self.calls:
            returns = function._schema.returns
            if returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
                continue  # a view stays one
            again = function(*args, **kwargs)
            for own, value in zip(_tensors(out), _tensors(again), strict=True):
                if own is not value:
                    own.copy_(value)


def record(function: Function, inputs: Sequence[Tensor]) -> Recorded:
    """Stand in for :func:`bionas_fast.runtime.graphs.record`."""
    fixed = [tensor.clone() for tensor in inputs]
    recorder = _Recorder()
    try:
        with recorder:
            outputs = function(*fixed)
    finally:
        with torch.no_grad():
            recorder.undo()

    def replay() -> None:
        with torch.no_grad():
            recorder.replay()

    return Recorded(fixed, outputs, replay)
