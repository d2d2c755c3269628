"""Counting of what a step asks of a GPU, without one: launches, copies from the host, waits for the device.

The step runs its real code on PyTorch's ``meta`` device, whose tensors have shapes but no memory, as if it were a CUDA
device on which Triton can run. Triton kernels are counted in place of being launched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch._dynamo  # now, because it keeps functions of torch that a test replaces
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bionas_fast import backends, torch_private

DEVICE = torch.device("meta")
#: Operators without a kernel although their schema does not say so.
_NO_LAUNCH = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh"}
#: Operators of more than one kernel: padding fills and copies, a convolution has two gradients.
_SEVERAL = {"constant_pad_nd": 2, "convolution_backward": 2}


@dataclass
class Counts:
    """What was counted, each by name.

    Attributes:
        kernels: launches of Triton kernels.
        operators: launches by PyTorch's operators, a lower bound; copies from the host included.
        copies: copies from the host that the host does not wait for, if the memory is pinned.
        blocking: copies from the host that it waits for.
        waits: other waits of the host for the device: reading a number, choosing by a mask.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    blocking: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        """All launches of any kind."""
        return self.kernels.total() + self.operators.total()


class _Operators(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        on_device = any(one.device == DEVICE for one in given)
        if on_device and (read := self._read(name, args, kwargs)) is not None:
            self.counts.waits[name] += 1
            return read
        out = function(*args, **kwargs)
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor) and one.device == DEVICE]
        if made or on_device:
            self._count(function, name, given, kwargs)
        return out

    def _read(self, name: str, args: Any, kwargs: Any) -> Any:
        """The stand-in for what the host reads from the device; None if it reads nothing."""
        if name == "_local_scalar_dense":
            return 1.0 if args[0].is_floating_point() else 1
        if name == "equal":
            return True
        if name == "_to_copy" and torch.device(kwargs.get("device") or DEVICE).type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="cpu")
        if name == "nonzero":
            return torch.empty(0, args[0].dim(), dtype=torch.int64, device=DEVICE)
        return None

    def _count(self, function: Any, name: str, given: list[Tensor], kwargs: Any) -> None:
        counts = self.counts
        returns = function._schema.returns
        is_view = returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if is_view or name in _NO_LAUNCH:
            return
        if name == "index" and any(one.dtype == torch.bool for one in given[1:]):
            counts.waits[name] += 1
        # A number of the host is passed to the kernel as an argument.
        if any(one.device != DEVICE and one.dim() for one in given):
            (counts.copies if kwargs.get("non_blocking") else counts.blocking)[name] += 1
        counts.operators[name] += _SEVERAL.get(name, 1)


class Launch(NamedTuple):
    """A launch of a Triton kernel."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class _Kernel:
    def __init__(self, name: str, kernel: Any, launched: list[Launch]) -> None:
        self.name, self.kernel, self.launched = name, kernel, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(**arguments: Any) -> None:
            assert all(size > 0 for size in grid), (self.name, grid)
            self.launched.append(Launch(self.name, self.kernel, grid, arguments))

        return launch


class Card:
    """The meta device in the place of a CUDA device, within a test.

    Args:
        launchers: the modules that launch Triton kernels.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, launchers: list[ModuleType]) -> None:
        self.launched: list[Launch] = []
        self.copied: list[str] = []
        for module in launchers:
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                monkeypatch.setattr(module, name, _Kernel(name, getattr(module, name), self.launched))

        monkeypatch.setattr(backends, "_fastest", self._fastest)
        monkeypatch.setattr(backends, "_obstacle", lambda op, device, backend: "")
        monkeypatch.setattr(torch_private, "has_dispatch_modes", lambda: False)  # the counter is one
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # raises for meta
        monkeypatch.setattr(torch, "autocast", lambda *how, **more: nullcontext())
        for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):  # as on CUDA, all weights at once
            name = "_get_foreach_kernels_supported_devices"
            monkeypatch.setattr(import_module(module), name, lambda: [DEVICE.type])
        # PyTorch copies numbers and lists below its dispatcher.
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (torch, "asarray"), (Tensor, "new_tensor")):
            monkeypatch.setattr(owner, name, self._noting_numbers(getattr(owner, name)))
        for name in ("__getitem__", "__setitem__"):
            monkeypatch.setattr(Tensor, name, self._noting_lists(getattr(Tensor, name)))

    @staticmethod
    def _fastest(op: str, device: str) -> str:
        names = backends._implementations[op]
        return next((name for name in ("triton", "native") if name in names), "reference")

    def _noting_numbers(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            out = function(*args, **kwargs)
            if out.device == DEVICE and not isinstance((*args, *kwargs.values())[-1], Tensor):
                self.copied.append(function.__name__)
            return out

        return run

    def _noting_lists(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(tensor: Tensor, index: Any, *value: Any) -> Any:
            each = index if isinstance(index, tuple) else (index,)
            if tensor.device == DEVICE:
                self.copied += ["index" for one in each if isinstance(one, (list, np.ndarray))]
            return function(tensor, index, *value)

        return run

    @contextmanager
    def counted(self) -> Iterator[Counts]:
        """Count what the block asks of the device."""
        counts, launched, copied = Counts(), len(self.launched), len(self.copied)
        with _Operators(counts):
            yield counts
        counts.kernels.update(launch.name for launch in self.launched[launched:])
        for name in self.copied[copied:]:
            counts.blocking[name] += 1
            counts.operators["copy"] += 1
