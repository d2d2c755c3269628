"""The compiled kernels: those that came with the package, or else compiled once, on first use.

Nothing happens at import. :func:`load` takes the library that was compiled ahead of time if it belongs to the sources
next to it, and otherwise compiles them into the user's cache (:mod:`.build`), which takes a few seconds and a
C++ compiler. A failure leaves the reference implementation and a reason, never an exception. The same goes for the
kernels for CUDA, a library of their own, with ``nvcc`` and only where there is a CUDA device.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from bionas_fast.native import build, fakes

_HERE = Path(__file__).resolve().parents[1]
_AHEAD_OF_TIME = _HERE / "_C.abi3.so"
_CUDA_AHEAD_OF_TIME = _HERE / "_C_cuda.abi3.so"

_lock = threading.Lock()


class Status(NamedTuple):
    """The state of the compiled kernels in this process.

    Attributes:
        available: whether they run.
        reason: why not; empty if they run.
        isa: the instruction set that runs; empty if none does.
        path: the library.
    """

    available: bool
    reason: str
    isa: str
    path: Path | None


def load() -> bool:
    """Make the operators ``torch.ops.bionas_fast_native`` available, compiling them if need be.

    The outcome stands for the whole process; later calls cost nothing.

    Returns:
        Whether they are; :func:`status` says why not.
    """
    return status().available


def status() -> Status:
    """The outcome of :func:`load`; loads if nobody has yet."""
    path, reason = _loaded()
    if path is None:
        return Status(False, reason, "", None)
    return Status(True, "", torch.ops.bionas_fast_native.isa(), path)


def _loaded() -> tuple[Path | None, str]:
    with _lock:
        return _load_cpu()


def cuda_status() -> Status:
    """The state of the kernels for CUDA; loads them if nobody has yet."""
    with _lock:
        path, reason = _load_cuda()
    return Status(not reason, reason, "", path)


def obstacle(device: str) -> str:
    """The reason why the compiled kernels cannot run on this device type; empty if they can."""
    return "runs on the CPU only" if device != "cpu" else _loaded()[1]


def obstacle_with_cuda(device: str) -> str:
    """The same as :func:`obstacle`, for kernels that exist for CUDA too."""
    return cuda_status().reason if device == "cuda" else obstacle(device)


def isas() -> tuple[str, ...]:
    """The instruction sets that run here, fastest first, of avx512, avx2 and baseline; none without the library."""
    if not load():
        return ()
    return tuple(torch.ops.bionas_fast_native.isas())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Inside the block every kernel runs the variant of one instruction set, in all threads. For tests, benchmarks.

    Raises:
        InputError: it does not run here.
    """
    from bionas_fast.errors import unknown

    if name not in isas():
        raise unknown("instruction set", name, isas())
    native = torch.ops.bionas_fast_native
    before = native.isa()
    native.set_isa(name)
    try:
        yield
    finally:
        native.set_isa(before)


def release_memory() -> int:
    """Give the memory that the kernels keep for the next step back to the system; returns the number of bytes."""
    if not load():
        return 0
    return torch.ops.bionas_fast_native.release_memory()


@functools.cache
def _load_cpu() -> tuple[Path | None, str]:
    """The library that was loaded, or None and the reason."""
    path, reason = _open(_AHEAD_OF_TIME, lambda: build.built_on_first_use(torch.__version__))
    if path is not None:
        fakes.register()
    return path, reason


@functools.cache
def _load_cuda() -> tuple[Path | None, str]:
    """The library for CUDA; also with a reason if it was loaded and no device can run it."""
    path, reason = _load_cpu()  # which defines the operators
    if path is not None:
        path, reason = _open(_CUDA_AHEAD_OF_TIME, _cuda_on_first_use)
    return path, reason if path is None else torch.ops.bionas_fast_native.cuda_obstacle()


def _open(ahead_of_time: Path, make: Callable[[], Path]) -> tuple[Path | None, str]:
    """The library that was compiled ahead of time, if it will do, or else one that is built."""
    path = ahead_of_time
    try:
        if not (build.is_current(path) and _loads(path)):
            path = make()
            torch.ops.load_library(path)
    # No compiler, no folder to write in, no home, no file locks, a $CXX that is no command line.
    except (build.BuildError, OSError, RuntimeError, ImportError, ValueError) as error:
        return None, " ".join(str(error).split()) or type(error).__name__
    return path, ""


def _loads(path: Path) -> bool:
    try:
        torch.ops.load_library(path)
    except OSError:
        return False
    return True


def _cuda_on_first_use() -> Path:
    if not torch.cuda.is_available():
        raise build.BuildError("there is no CUDA device")
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    architectures = [f"{major}{minor}" for major, minor in sorted(capabilities)]
    return build.built_cuda_on_first_use(torch.__version__, architectures)
