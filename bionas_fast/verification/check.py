"""A check of a kernel: arguments, the function under test, and what it should compute, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bionas_fast import native
from bionas_fast.choices import Products

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Target:
    """The implementation that a check runs.

    Attributes:
        backend: ``native`` or ``triton``.
        device: such as ``cpu`` or ``cuda:0``.
        dtype: the dtype of the tensors, of compiled kernels only that of maps; ``tf32`` is float32 with factors of
            products rounded.
        isa: the instruction set of compiled kernels on the CPU; empty elsewhere.
        large: whether the sizes are those of a real network instead of odd ones.
    """

    backend: str
    device: str
    dtype: str = "float32"
    isa: str = ""
    large: bool = False

    @property
    def products(self) -> Products:
        """The precision of float32 products."""
        return "tf32" if self.dtype == "tf32" else "ieee"

    def active(self) -> AbstractContextManager[Any]:
        """Enter the choice of backend and instruction set."""
        return native.use_isa(self.isa) if self.isa else nullcontext()

    def draw(self, seed: int = 0) -> Draw:
        """Return random numbers for this target."""
        maps = DTYPES[self.dtype]
        own = torch.float32 if self.backend == "native" else maps
        return Draw(torch.device(self.device), own, maps, torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Draw:
    """Random tensors, the same on every device; ``maps`` is the dtype of :meth:`map`."""

    device: torch.device
    dtype: torch.dtype
    maps: torch.dtype
    generator: torch.Generator

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Draw from a normal distribution."""
        return (torch.randn(shape, generator=self.generator) * scale).to(self.device, self.dtype)

    def map(self, *shape: int) -> Tensor:
        """Draw a map from a normal distribution."""
        return self.normal(*shape).to(self.maps)

    def coarse_map(self, *shape: int) -> Tensor:
        """Draw a map like :meth:`coarse`, in which every dtype is exact."""
        return self.coarse(*shape).to(self.maps)

    def coarse(self, *shape: int) -> Tensor:
        """Draw multiples of 1/32 of magnitude below 4: sums of products of two are exact, so no ReLU is in doubt."""
        steps = (torch.randn(shape, generator=self.generator) * 32).round().clamp_(-127, 127)
        return (steps / 32).to(self.device, self.dtype)


class Expected(NamedTuple):
    """The right results.

    Attributes:
        values: in float64.
        scales: the sums of the magnitudes of the terms that each number adds up, in float64, or one number for all.
        bounds: for each tensor, the largest error relative to its scale that rounding explains.
    """

    values: Sequence[Tensor]
    scales: Sequence[Tensor]
    bounds: Sequence[float]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kernel: the name of what is checked.
        shape: the shape and the geometry, for people.
        arguments: tensors, records and lists of these, on the device.
        run: the function under test; it changes no argument.
        expect: the same in float64; its arguments are those of ``run``, widened.
    """

    kernel: str
    shape: str
    arguments: tuple[Any, ...]
    run: Callable[..., Sequence[Tensor]]
    expect: Callable[..., Expected]


class Outcome(NamedTuple):
    """The outcome of a check.

    Attributes:
        op: the op as ``backends`` knows it.
        mode: ``""``, ``second stream`` or ``graph replay``.
        error: the largest error relative to its scale, of the tensor that comes closest to its bound; NaN if skipped.
        bound: the bound of that tensor.
        status: ``ok``, ``failed`` or ``skipped``.
        reason: of a failure or of a skip.
    """

    op: str
    kernel: str
    backend: str
    device: str
    dtype: str
    shape: str
    mode: str
    error: float
    bound: float
    status: str
    reason: str


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists and records; what is one tensor stays one."""
    seen: dict[int, Tensor] = {}

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in seen:
                seen[id(value)] = function(value)
            return seen[id(value)]
        if not isinstance(value, (list, tuple)):
            return value
        each = [of(one) for one in value]
        return type(value)(*each) if hasattr(value, "_fields") else type(value)(each)

    return of(value)


def tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in nested tuples, lists and records."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)


def wide(value: Any) -> Any:
    """Widen floating-point tensors to float64."""
    return mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, value)


def magnitudes(value: Any) -> Any:
    """Take the absolute values of floating-point tensors."""
    return mapped(lambda tensor: tensor.abs() if tensor.is_floating_point() else tensor, value)
