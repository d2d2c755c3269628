"""The choice of the backend that runs an op.

Every op has a ``reference`` in plain PyTorch. By default the fastest implementation for the tensors' device runs;
``with use_backend("reference"):`` or an op's ``backend=`` makes the choice explicit. An explicit choice that is not
possible is an error that states the reason.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bionas_fast import torch_private
from bionas_fast.errors import InputError, unknown

BACKENDS = ("reference", "native", "triton")


class _Chosen:
    """The choice of :func:`use_backend`; None for the fastest."""

    def __init__(self) -> None:
        self.backend: str | None = None


class _OfThread(threading.local):
    """The choice of this thread. Compilers trace changes of ``chosen``, but none of the object itself."""

    def __init__(self) -> None:
        self.chosen = _Chosen()  # not a ContextVar, which torch 2.11 does not trace


_thread = _OfThread()

#: Function that returns the reason why a backend cannot run on a device type; empty if it can.
Obstacle = Callable[[str], str]

_implementations: dict[str, dict[str, Obstacle]] = {}


@dataclass(frozen=True)
class Choice:
    """The backend that runs an op on a device, and for each other backend the reason why it does not."""

    op: str
    device: str
    backend: str
    reasons: Mapping[str, str]


def declare(op: str, **implementations: Obstacle) -> None:
    """Declare the backends besides ``reference`` that implement an op, fastest first, each with its obstacle."""
    _implementations[op] = implementations


def triton_obstacle(device: str) -> str:
    """Return the reason why Triton kernels cannot run on this device type; empty if they can."""
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "runs on CUDA devices only"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return _triton_failure() if os.environ.get("TRITON_INTERPRET") != "1" else ""


@functools.cache
def _triton_failure() -> str:
    """Return the reason why Triton compiles no kernel for the GPU; empty without one, as for fake tensors."""
    if not torch.cuda.is_available():
        return ""
    from bionas_fast.kernels import triton_probe  # slow to import

    return triton_probe.failure()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op called inside the block on this backend.

    Raises:
        InputError: no such backend; or, at the call of an op, the backend cannot run it, with the reason.
    """
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    chosen = _thread.chosen
    before, chosen.backend = chosen.backend, name
    try:
        yield
    finally:
        chosen.backend = before


def chosen() -> str | None:
    """Return the choice of :func:`use_backend`; None for the fastest."""
    return _thread.chosen.backend


def choose(op: str, device: str, backend: str | None = None) -> str:
    """Choose the backend of ``op`` on tensors of this device type.

    Args:
        backend: an explicit choice; by default that of :func:`use_backend`, or else the fastest available.

    Raises:
        InputError: the explicit choice is unknown or not possible.
    """
    wanted = backend if backend is not None else _thread.chosen.backend
    if wanted is None or wanted == "reference":
        return _fastest(op, device) if wanted is None else "reference"
    if wanted not in BACKENDS:
        raise unknown("backend", wanted, BACKENDS)
    obstacle = _obstacle(op, device, wanted)
    if obstacle:
        raise InputError(f"{op} cannot run on backend {wanted!r}: {obstacle}")
    return wanted


# A compiled graph may treat the results as constants: what is installed does not change in a process.
@torch_private.constant
def _fastest(op: str, device: str) -> str:
    return next((name for name, obstacle in _implementations[op].items() if not obstacle(device)), "reference")


@torch_private.constant
def _obstacle(op: str, device: str, backend: str) -> str:
    return explain(op, device).reasons.get(backend, "")


def traced() -> bool:
    """Whether a tracer is active: ``torch.compile``, ``torch.jit.trace`` or a dispatch mode (fake tensors)."""
    return torch.compiler.is_compiling() or torch_private.has_dispatch_modes() or torch.jit.is_tracing()


def recorded() -> bool:
    """Whether a graph for other programs is recorded, by ``torch.export`` or ``torch.jit.trace``."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def explain(op: str, device: str) -> Choice:
    """Explain the automatic choice of backend for ``op`` on this device type."""
    implemented = _implementations[op]
    reasons = {}
    for name in BACKENDS:
        if name != "reference":
            reason = implemented[name](device) if name in implemented else "not implemented for this op"
            if reason:
                reasons[name] = reason
    return Choice(op, device, _fastest(op, device), reasons)


def op_names() -> tuple[str, ...]:
    """Return the names of all ops."""
    return tuple(_implementations)
