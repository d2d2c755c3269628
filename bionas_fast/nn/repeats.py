"""Passes that gradient checkpointing repeats: state moves in the first pass only, and a repeat sees what it saw.

A checkpoint drops the activations of a segment of the model and runs its forward pass again in the backward pass. A
layer whose forward pass reads state that passes change calls :func:`current` once a pass::

    now = repeats.current()
    seen = observe() if now is None else now.once(self, observe, keep)
    if now is None or not now.repeated:
        ...  # move the state

The values lie on the checkpoint itself, one per use of a layer, and die with its graph. Several passes may be in
flight, checkpoints may be nested, and a graph may be run backward several times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from bionas_fast import torch_private

T = TypeVar("T")

#: The attribute of a checkpoint's object that holds its record.
_RECORD = "_bionas_fast_record"


class _Record:
    """The values that the layers saw in the first pass of one checkpoint, in the order of their uses."""

    def __init__(self) -> None:
        self.values: dict[nn.Module, list[Any]] = {}
        self._task = -1
        self._read: dict[nn.Module, int] = {}

    @classmethod
    def of(cls, checkpoint: Any) -> _Record:
        if not hasattr(checkpoint, _RECORD):
            setattr(checkpoint, _RECORD, cls())
        return getattr(checkpoint, _RECORD)

    def next(self, layer: nn.Module, advance: bool) -> Any:
        """Return what the layer saw at its next use in this repeat; None if it recorded nothing."""
        values = self.values.get(layer)
        if not values:
            return None
        task = torch_private.graph_task()
        if task != self._task:
            self._task, self._read = task, {}
        index = self._read.get(layer, 0)
        if advance:
            self._read[layer] = index + 1
        return values[index % len(values)]


class Pass:
    """One forward pass inside checkpoints.

    Attributes:
        repeated: whether the pass repeats another one.
    """

    def __init__(self, first: Sequence[_Record], again: _Record | None) -> None:
        self._first = first
        self._again = again
        self.repeated = again is not None

    def peek(self, layer: nn.Module) -> Any:
        """Return what a repeat will recall for this use of the layer; None in a first pass, or if there is nothing."""
        return None if self._again is None else self._again.next(layer, advance=False)

    def recall(self, layer: nn.Module) -> Any:
        """Return what the first pass kept for this use of the layer; None in a first pass, or if there is nothing."""
        return None if self._again is None else self._again.next(layer, advance=True)

    def keep(self, layer: nn.Module, value: Any) -> None:
        """Keep a value, which later changes of the state must not change, for the repeats of this pass."""
        for record in self._first:
            record.values.setdefault(layer, []).append(value)

    def once(self, layer: nn.Module, observe: Callable[[], T], copy: Callable[[T], T]) -> T:
        """Return what the layer observes in a first pass, or has observed if this is a repeat.

        Args:
            observe: reads the state, and moves it if the pass does.
            copy: makes a value independent of later changes.
        """
        seen = self.recall(layer)
        if seen is None:
            seen = observe()
        if self._first:
            self.keep(layer, copy(seen))
        return seen


def current() -> Pass | None:
    """Return the pass that is running if it is inside a gradient checkpoint; None for an ordinary pass."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return None
    if torch.is_grad_enabled() and not torch_private.in_backward_pass() and not torch_private.has_saved_tensor_hooks():
        return None
    first: list[_Record] = []
    for checkpoint, repeated in torch_private.checkpoints():
        record = _Record.of(checkpoint)
        if repeated:
            return Pass(first, record)
        first.append(record)
    return Pass(first, None) if first else None
