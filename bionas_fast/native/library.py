"""The compiled kernels: those that came with the package, or else compiled once, on first use.

Nothing happens at import. :func:`load` takes the library that was compiled ahead of time if it belongs to the sources
beside it, and otherwise compiles them into the user's cache (:mod:`.build`), which takes a few seconds and a
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

from bionas_fast.native import build

_HERE = Path(__file__).resolve().parents[1]
_AHEAD_OF_TIME = _HERE / "_C.abi3.so"
_CUDA_AHEAD_OF_TIME = _HERE / "_C_cuda.abi3.so"

_lock = threading.Lock()


class Status(NamedTuple):
    """What became of the compiled kernels in this process.

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
        whether they are; :func:`status` says why not.
    """
    return status().available


def status() -> Status:
    """What :func:`load` came to; loads if nobody has yet."""
    path, reason = _loaded()
    if path is None:
        return Status(False, reason, "", None)
    import torch

    return Status(True, "", torch.ops.bionas_fast_native.isa(), path)


def _loaded() -> tuple[Path | None, str]:
    with _lock:
        return _load_cpu()


def cuda_status() -> Status:
    """What became of the kernels for CUDA; loads them if nobody has yet."""
    with _lock:
        path, reason = _load_cuda()
    return Status(not reason, reason, "", path)


def obstacle(device: str) -> str:
    """Why the compiled kernels cannot run on this device type; empty if they can."""
    return "runs on the CPU only" if device != "cpu" else _loaded()[1]


def obstacle_with_cuda(device: str) -> str:
    """As :func:`obstacle`, of kernels that there are for CUDA too."""
    return cuda_status().reason if device == "cuda" else obstacle(device)


def isas() -> tuple[str, ...]:
    """The instruction sets that run here, fastest first, of avx512, avx2 and baseline; none without the library."""
    if not load():
        return ()
    import torch

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
    import torch

    native = torch.ops.bionas_fast_native
    before = native.isa()
    native.set_isa(name)
    try:
        yield
    finally:
        native.set_isa(before)


def release_memory() -> int:
    """Give the memory that the kernels keep for the next step back to the system; how many bytes that were."""
    if not load():
        return 0
    import torch

    return torch.ops.bionas_fast_native.release_memory()


@functools.cache
def _load_cpu() -> tuple[Path | None, str]:
    """The library that was loaded, or None and the reason."""
    import torch

    path, reason = _open(_AHEAD_OF_TIME, lambda: build.built_on_first_use(torch.__version__))
    if path is not None:
        _register_fakes()
    return path, reason


@functools.cache
def _load_cuda() -> tuple[Path | None, str]:
    """As :func:`_load_cpu`; also with a reason if the library was loaded and no device can run it."""
    import torch

    path, reason = _load_cpu()  # which defines the operators
    if path is not None:
        path, reason = _open(_CUDA_AHEAD_OF_TIME, _cuda_on_first_use)
    return path, reason if path is None else torch.ops.bionas_fast_native.cuda_obstacle()


def _open(ahead_of_time: Path, make: Callable[[], Path]) -> tuple[Path | None, str]:
    """The library that was compiled ahead of time, if it will do, or else one that is built."""
    import torch

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
    import torch

    try:
        torch.ops.load_library(path)
    except OSError:
        return False
    return True


def _cuda_on_first_use() -> Path:
    import torch

    if not torch.cuda.is_available():
        raise build.BuildError("there is no CUDA device")
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    architectures = [f"{major}{minor}" for major, minor in sorted(capabilities)]
    return build.built_cuda_on_first_use(torch.__version__, architectures)


def _register_fakes() -> None:
    """How the operators look to ``torch.compile`` and to ``FakeTensorMode``."""
    import torch

    def fake(function: Callable) -> Callable:
        # A library made from some of the kernels has some of the operators.
        if hasattr(torch.ops.bionas_fast_native, name := function.__name__.lstrip("_")):
            torch.library.register_fake(f"bionas_fast_native::{name}")(function)
        return function

    @fake
    def _feedback_weight(weight, stored, stream, mode, bound, scale):
        return torch.empty_like(weight, memory_format=torch.contiguous_format)

    @fake
    def _uniform(shape, stream):
        return stream.new_empty(shape, dtype=torch.float32)

    @fake
    def _feedback_segments(weight, stored, stream, segments, magnitudes):
        return torch.empty_like(weight)

    @fake
    def _stage_forward(x, weights, stage, affine):
        stride, branches = stage[0], len(stage) // 2
        n, h, w, c = x.shape[-4:]
        sums = (x.new_empty(branches, c, dtype=torch.float64) for _ in range(2))
        return x.new_empty(branches, n, -(-h // stride), -(-w // stride), c), *sums

    @fake
    def _stage_backward(grads, prologue, x, weights, feedback, stage, affine, weight_grads):
        depthwise, pointwise = weights
        rows = len(stage) // 2 if x.dim() == 5 else 0
        sums = (x.new_empty(rows, x.shape[-1], dtype=torch.float64) for _ in range(2))
        square = pointwise.shape if weight_grads else (0, *pointwise.shape[1:])
        made = x.new_empty(depthwise.shape if weight_grads else (0,)), x.new_empty(square)
        return x.new_empty(x.shape), *sums, *made

    @fake
    def _separable_edges(x, weights, plan, mixing, moments, into):
        edges, twice, branches = plan[0], plan[1], len(plan) // 3 - 1
        stride = plan[2 + branches]
        n, h, w, c = x.shape
        size = (n, -(-h // stride), -(-w // stride), c)
        found = (x.new_empty(twice + branches, c, dtype=torch.float64) for _ in range(2))
        return [x.new_empty(size) for _ in range(edges)], x.new_empty(branches, *size), *found

    @fake
    def _separable_edges_backward(grads, saved, weights, feedback, plan, mixing, training, weight_grads):
        x, down = saved[0], len(feedback) > 0
        count = sum(tensor.numel() for tensor in weights) if down and weight_grads else 0
        return torch.empty_like(mixing), x.new_empty(x.shape if down else (0,)), x.new_empty(count)

    @fake
    def _mixed_sum(maps, terms, weight, offset, into):
        return [maps[0].new_empty(maps[0].shape[1:]) for _ in range(terms[0])]

    @fake
    def _mixed_sum_backward(grads, maps, terms):
        c = maps[0].shape[-1]
        return tuple(maps[0].new_empty(count, c, dtype=torch.float64) for count in (terms[0], len(terms) // 2))

    @fake
    def _normalised_sum(maps, terms, factors, sums, moments, into):
        out = [maps[0].new_empty(maps[0].shape[1:]) for _ in range(terms[0])]
        return out, torch.empty_like(sums[0]), torch.empty_like(sums[1])

    @fake
    def _normalised_sum_backward(grads, maps, terms, factors, moments, training):
        c, normalised = maps[0].shape[-1], len(moments[0])
        affine = (maps[0].new_empty(rows, c) for rows in (len(terms) // 2, normalised, normalised))
        return torch.empty_like(factors), *affine

    @fake
    def _pooling(x, stride):
        n, h, w, c = x.shape
        sums = (x.new_empty(2, c, dtype=torch.float64) for _ in range(2))
        return x.new_empty(2, n, -(-h // stride), -(-w // stride), c), *sums

    @fake
    def _pooling_backward(grads, x, stride):
        return x.new_empty(x.shape)

    @fake
    def _factorized_reduce(x, weights):
        n, h, w, c = x.shape
        count = len(weights[0])
        sums = (x.new_empty(count, c, dtype=torch.float64) for _ in range(2))
        return x.new_empty(count, n, -(-h // 2), -(-w // 2), c), *sums

    @fake
    def _factorized_reduce_backward(grads, prologue, x, weights, feedback, weight_grads):
        shapes = (tensor.shape if weight_grads else (0,) for tensor in weights)
        return x.new_empty(x.shape), *(x.new_empty(shape) for shape in shapes)

    @fake
    def _hebbian_activity(u, given, norm, activity, decay, temperature, groups):
        made = activity != "linear" or norm is not None
        return u.new_empty(u.shape if made else (0,)), u.new_empty(u.shape[1] * (decay != "none"), dtype=torch.float64)

    @fake
    def _weight_gradient(gradient, x, padding):
        return x.new_empty(gradient.shape[1], x.shape[1], 3, 3)

    @fake
    def _hebbian_move(weight, delta, total, rate, positions, normalisation, groups):
        return None
