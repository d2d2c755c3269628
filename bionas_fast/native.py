"""The compiled CPU kernels: those that came with the package, or else compiled once, on first use.

Nothing happens at import. :func:`load` takes the library that was compiled ahead of time if it belongs to the sources
beside it, and otherwise compiles them into the user's cache (``$XDG_CACHE_HOME``, by default ``~/.cache``), which
takes a few seconds and a C++ compiler (``$CXX``, by default ``c++``). A failure leaves the reference implementation
and a reason, never an exception.

``setup.py`` runs this file by itself, so its head imports nothing but the standard library.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parent
#: Inside an installed package, or beside the package in a checkout.
_SOURCES = next((folder for folder in (_HERE / "csrc", _HERE.parent / "csrc") if folder.is_dir()), _HERE / "csrc")
_AHEAD_OF_TIME = _HERE / "_C.abi3.so"

# The oldest torch whose stable ABI the library may use, 2.11: it runs on that one and on every later one.
_DEFINES = ("-DTORCH_TARGET_VERSION=0x020b000000000000",)
_COMPILE = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")

_lock = threading.Lock()


class BuildError(Exception):
    """The kernels could not be compiled; the message says why, in one line."""


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
    with _lock:
        path, reason = _load()
    if path is None:
        return Status(False, reason, "", None)
    import torch

    return Status(True, "", torch.ops.bionas_fast_native.isa(), path)


def obstacle(device: str) -> str:
    """Why the compiled kernels cannot run on this device type; empty if they can."""
    return "runs on the CPU only" if device != "cpu" else status().reason


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


def compile_library(output: Path) -> None:
    """Compile all of ``csrc/*.cpp`` and ``csrc/cpu/*.cpp`` into one library, for every instruction set.

    Needs torch's headers and libraries at hand, not torch itself.

    Raises:
        BuildError: with what the compiler said.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is not installed")
    torch_folder = Path(spec.origin).parent
    compiler = _compiler()
    bindings, kernels = sorted(_SOURCES.glob("*.cpp")), sorted((_SOURCES / "cpu").glob("*.cpp"))
    if not bindings:
        raise BuildError(f"no sources in {_SOURCES}")
    for_torch = [*_DEFINES, f'-DBIONAS_SOURCE="{source_hash()}"', f"-I{torch_folder / 'include'}"]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".objects-") as folder:
        objects: list[str] = []
        commands: list[list[str]] = []
        for file in bindings + kernels:
            objects.append(f"{folder}/{len(objects)}.o")
            # Kernels see no torch header, which keeps them quick to compile and easy to test alone.
            flags = for_torch if file in bindings else []
            commands.append([*compiler, *_COMPILE, *flags, "-c", str(file), "-o", objects[-1]])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        libraries = (f"-L{torch_folder / 'lib'}", "-ltorch_cpu")
        _run([*compiler, "-shared", *objects, *libraries, "-o", str(output)])


@functools.cache
def source_hash() -> str:
    """Of the C++ in ``csrc`` and of how it is compiled; every library holds the one that it was made from."""
    digest = hashlib.sha256(repr((_COMPILE, _DEFINES)).encode())
    for file in sorted(_SOURCES.rglob("*")):
        if file.suffix in {".cpp", ".h", ".inc"}:
            digest.update(f"\0{file.relative_to(_SOURCES).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:32]


@functools.cache
def _load() -> tuple[Path | None, str]:
    """The library that was loaded, or None and the reason."""
    import torch

    path = _AHEAD_OF_TIME
    try:
        if not (_is_current(path) and _loads(path)):
            path = _built_on_first_use(torch.__version__)
            torch.ops.load_library(path)
    # No compiler, no folder to write in, no home, no file locks, a $CXX that is no command line.
    except (BuildError, OSError, RuntimeError, ImportError, ValueError) as error:
        return None, " ".join(str(error).split()) or type(error).__name__
    _register_fakes()
    return path, ""


def _loads(path: Path) -> bool:
    import torch

    try:
        torch.ops.load_library(path)
    except OSError:
        return False
    return True


def _is_current(path: Path) -> bool:
    """Whether a library was made from the sources as they are; one left over from others must not run."""
    return path.is_file() and source_hash().encode() in path.read_bytes()


def _built_on_first_use(torch_version: str) -> Path:
    """The library in the user's cache, compiled if it is not there. Processes that come meanwhile wait for it."""
    import fcntl

    compiler = _compiler()
    key = hashlib.sha256(repr((source_hash(), torch_version, compiler, _version(compiler))).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bionas-fast"
    path = cache / f"_C-{key}.so"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    # The lock goes with the process that holds it, however that ends.
    with open(cache / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path
        for left_behind in cache.glob(f".{key}-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        print("bionas-fast: compiling CPU kernels, once; this takes some seconds", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{key}-", ignore_cleanup_errors=True) as folder:
            draft = Path(folder, path.name)
            compile_library(draft)
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
    return path


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"])


def _run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        BuildError: it cannot be run or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error.strerror}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        first = next((line for line in said if "error" in line), said[-1] if said else f"exit status {done.returncode}")
        raise BuildError(f"{command[0]} failed: {first.strip()}")
    return done.stdout


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
    def _stage_forward(x, depthwise, pointwise, kernels, dilations, stride, scale, shift):
        n, h, w, c = x.shape[-4:]
        sums = (x.new_empty(len(kernels), c, dtype=torch.float64) for _ in range(2))
        return x.new_empty(len(kernels), n, -(-h // stride), -(-w // stride), c), *sums

    @fake
    def _stage_backward(
        grads, index, z, a, b, d, x, depthwise, pointwise, b_depthwise, b_pointwise, kernels, dilations, stride, scale,
        shift, weights,
    ):  # fmt: skip
        rows = len(kernels) if x.dim() == 5 else 0
        sums = (x.new_empty(rows, x.shape[-1], dtype=torch.float64) for _ in range(2))
        square = pointwise.shape if weights else (0, *pointwise.shape[1:])
        grads = x.new_empty(depthwise.shape if weights else (0,)), x.new_empty(square)
        return x.new_empty(x.shape), *sums, *grads

    @fake
    def _separable_edges(x, weights, kernels, dilations, stride, edges, count, mixing, mean, var, into):
        n, h, w, c = x.shape
        size = (n, -(-h // stride), -(-w // stride), c)
        rows = len(kernels) + len(weights[3])
        moments = (x.new_empty(rows, c, dtype=torch.float64) for _ in range(2))
        return [x.new_empty(size) for _ in range(count)], x.new_empty(len(kernels), *size), *moments

    @fake
    def _separable_edges_backward(
        grads, z, mean, var, training, x, weights, feedback, kernels, dilations, stride, edges, mixing, weights_wanted
    ):  # fmt: skip
        down = len(feedback) > 0
        shapes = [tensor.shape if down and weights_wanted else (0, *tensor.shape[1:]) for tensor in weights]
        grad_x = x.new_empty(x.shape if down else (0,))
        return torch.empty_like(mixing), grad_x, *(x.new_empty(shape) for shape in shapes)

    @fake
    def _feedback_segments(weight, stored, stream, lengths, modes, bounds, scales):
        return torch.empty_like(weight)

    @fake
    def _mixed_sum(maps, index, edges, weight, offset, into):
        return [maps[0].new_empty(maps[0].shape[1:]) for _ in range(offset.shape[0])]

    @fake
    def _mixed_sum_backward(maps, index, edges, grads):
        c = maps[0].shape[-1]
        return tuple(maps[0].new_empty(count, c, dtype=torch.float64) for count in (len(grads), len(index)))

    @fake
    def _pools(x, stride):
        n, h, w, c = x.shape
        sums = (x.new_empty(2, c, dtype=torch.float64) for _ in range(2))
        return x.new_empty(2, n, -(-h // stride), -(-w // stride), c), *sums

    @fake
    def _pools_backward(grads, x, stride):
        return x.new_empty(x.shape)

    @fake
    def _hebbian_activity(u, given, norm, activity, decay, temperature, groups):
        made = activity != "linear" or norm is not None
        return u.new_empty(u.shape if made else (0,)), u.new_empty(u.shape[1] * (decay != "none"), dtype=torch.float64)

    @fake
    def _hebbian_move(weight, delta, total, rate, positions, normalisation, groups):
        return None
