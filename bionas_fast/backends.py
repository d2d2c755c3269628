"""Which implementation runs an op, and why.

Every op has a ``reference`` in plain PyTorch. Where a faster implementation exists for the tensors' device it runs by
itself; ``with use_backend("reference"):`` or an op's ``backend=`` makes the choice explicit, and an explicit choice
that cannot be met is an error that says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from bionas_fast.errors import InputError, unknown

BACKENDS = ("reference", "native", "triton")

_chosen: ContextVar[str | None] = ContextVar("bionas_fast_backend", default=None)

#: op name → backends that implement it, fastest first.
_implementations: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Choice:
    """What runs an op on a device, and what speaks against each backend that does not."""

    op: str
    device: str
    backend: str
    reasons: Mapping[str, str]


def declare(op: str, backends: tuple[str, ...]) -> None:
    """Say which backends implement an op, fastest first. The last one must be ``reference``."""
    _implementations[op] = backends


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op called inside the block on this backend.

    Raises:
        InputError: no such backend; and, at the call of an op, that the backend cannot run it, with the reason.
    """
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def choose(op: str, device: str, backend: str | None = None) -> str:
    """The backend that runs ``op`` on tensors of this device type.

    Args:
        backend: an explicit choice; None for that of :func:`use_backend`, else the fastest available.

    Raises:
        InputError: the explicit choice is unknown or cannot be met.
    """
    wanted = backend if backend is not None else _chosen.get()
    if wanted is None or wanted == "reference":
        return explain(op, device).backend if wanted is None else "reference"
    if wanted not in BACKENDS:
        raise unknown("backend", wanted, BACKENDS)
    choice = explain(op, device)
    if wanted in choice.reasons:
        raise InputError(f"{op} cannot run on backend {wanted!r}: {choice.reasons[wanted]}")
    return wanted


def explain(op: str, device: str) -> Choice:
    """What runs ``op`` on this device type when nothing is chosen, and why nothing faster does."""
    implemented = _implementations[op]
    reasons = {name: "not implemented for this op" for name in BACKENDS if name not in implemented}
    return Choice(op, device, next(name for name in implemented if name not in reasons), reasons)


def op_names() -> tuple[str, ...]:
    """The names of all ops."""
    return tuple(_implementations)
