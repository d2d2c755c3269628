"""Loading of the compiled kernels: those installed with the package, or compiled once, on first use.

Nothing happens at import. :func:`load` uses the library compiled ahead of time if it matches the sources next to it;
otherwise it compiles them into the user's cache (:mod:`.build`), which takes half a minute and a C++ compiler. On
failure the reference implementation runs, and a reason is recorded; no exception is raised. The CUDA kernels are a
separate library, loaded in the same way with ``nvcc``, and only if there is a CUDA device.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from bionas_fast.native import build, counts, fakes

_HERE = Path(__file__).resolve().parents[1]
_AHEAD_OF_TIME = _HERE / "_C.abi3.so"
_CUDA_AHEAD_OF_TIME = _HERE / "_C_cuda.abi3.so"

_lock = threading.Lock()


class Status(NamedTuple):
    """The state of the compiled kernels in this process.

    Attributes:
        available: whether the kernels can run.
        reason: the reason why not; empty if they can.
        isa: the instruction set in use; empty if there is none.
        path: the path of the library.
    """

    available: bool
    reason: str
    isa: str
    path: Path | None


def load() -> bool:
    """Load the operators ``torch.ops.bionas_fast_native``, compiling them if necessary.

    The outcome is cached for the process.

    Returns:
        Whether they are available; :func:`status` gives the reason if not.
    """
    return status().available


def status() -> Status:
    """Return the outcome of :func:`load`, loading the kernels on the first call."""
    path, reason = _loaded()
    if path is None:
        return Status(False, reason, "", None)
    return Status(True, "", torch.ops.bionas_fast_native.isa(), path)


def _loaded() -> tuple[Path | None, str]:
    with _lock:
        return _load_cpu()


def cuda_status() -> Status:
    """Return the state of the CUDA kernels, loading them on the first call."""
    with _lock:
        path, reason = _load_cuda()
    return Status(not reason, reason, "", path)


def obstacle(device: str) -> str:
    """Return the reason why the compiled kernels cannot run on this device type; empty if they can."""
    return "runs on the CPU only" if device != "cpu" else _loaded()[1]


def obstacle_with_cuda(device: str) -> str:
    """Return the reason why kernels compiled for CPU and CUDA cannot run on this device type; empty if they can."""
    return cuda_status().reason if device == "cuda" else obstacle(device)


def isas() -> tuple[str, ...]:
    """Return the supported instruction sets, fastest first; none without the library.

    They are avx512_bf16, avx512, avx2 and baseline.
    """
    if not load():
        return ()
    return tuple(torch.ops.bionas_fast_native.isas())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the variants of one instruction set in all threads inside the block. For tests and benchmarks.

    Raises:
        InputError: the instruction set is not supported on this machine.
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
    """Release the memory pool of the kernels to the system; return the number of bytes."""
    if not load():
        return 0
    return torch.ops.bionas_fast_native.release_memory()


@functools.cache
def _load_cpu() -> tuple[Path | None, str]:
    """Load the library; return its path, or None and the reason."""
    path, reason = _open(_AHEAD_OF_TIME, lambda: build.built_on_first_use(torch.__version__))
    if path is not None:
        fakes.register()
        counts.declare()
    return path, reason


@functools.cache
def _load_cuda() -> tuple[Path | None, str]:
    """Load the CUDA library; return its path or None, and the reason why no device can run it."""
    path, reason = _load_cpu()  # the CPU library defines the operators
    if path is not None:
        path, reason = _open(_CUDA_AHEAD_OF_TIME, _cuda_on_first_use)
    return path, reason if path is None else torch.ops.bionas_fast_native.cuda_obstacle()


def _open(ahead_of_time: Path, make: Callable[[], Path]) -> tuple[Path | None, str]:
    """Load the library compiled ahead of time if it is current, otherwise build one."""
    path = ahead_of_time
    try:
        if not (build.is_current(path) and _loads(path)):
            path = make()
            torch.ops.load_library(path)
    # No compiler, no writable folder, no home, no file locks, an invalid $CXX.
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
