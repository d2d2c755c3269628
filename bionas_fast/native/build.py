"""Compile the kernels: ahead of time, for ``setup.py``, or on first use, into the user's cache.

The cache is ``$XDG_CACHE_HOME/bionas-fast``, by default in ``~/.cache``; C++ is compiled by ``$CXX``, by default
``c++``, and CUDA by ``nvcc`` of ``$CUDA_HOME``, of the path or of ``/usr/local/cuda``.

``setup.py`` runs this file by itself, in environments that may hold nothing but the standard library: whatever else is
of use is imported where it is used.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]
#: Inside an installed package, or next to the package in a checkout.
_SOURCES = next((folder for folder in (_HERE / "csrc", _HERE.parent / "csrc") if folder.is_dir()), _HERE / "csrc")

# The oldest torch whose stable ABI the libraries may use, 2.11: they run on that one and on every later one.
_DEFINES = ("-DTORCH_TARGET_VERSION=0x020b000000000000",)
_COMPILE = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
_CUDA_HOME = "/usr/local/cuda"
_COMPILE_CUDA = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")


class BuildError(Exception):
    """The kernels could not be compiled; the message says why, in one line."""


def compile_library(output: Path) -> None:
    """Compile all of ``csrc/*.cpp`` and ``csrc/cpu/*.cpp`` into one library, for every instruction set.

    Needs torch's headers and libraries at hand, not torch itself.

    Raises:
        BuildError: with what the compiler said.
    """
    compiler = _compiler()
    # Kernels see no torch header, which keeps them quick to compile and easy to test alone.
    commands = [[*compiler, *_COMPILE, *_for_torch(), str(file)] for file in sorted(_SOURCES.glob("*.cpp"))]
    commands += [[*compiler, *_COMPILE, str(file)] for file in sorted((_SOURCES / "cpu").glob("*.cpp"))]
    _link(commands, [*compiler, "-shared", f"-L{_torch() / 'lib'}"], ["-ltorch_cpu"], output)


def compile_cuda_library(output: Path, architectures: Sequence[str]) -> None:
    """Compile all of ``csrc/cuda`` into one library.

    Needs ``nvcc``, a C++ compiler that it knows, and the headers and libraries of a torch with CUDA; no GPU.

    Args:
        architectures: compute capabilities, such as ``80`` or ``90``; GPUs newer than the newest run it too.

    Raises:
        BuildError: with what the compiler said; an architecture that is none.
    """
    wrong = [name for name in architectures if not name.isdecimal()]
    if wrong or not architectures:
        raise BuildError(f"architectures: expected some such as 80 or 90, got {', '.join(wrong) or 'none'}")
    nvcc = [_nvcc(), *_COMPILE_CUDA]
    nvcc += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    newest = max(architectures, key=int)
    nvcc.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")  # for GPUs that are newer still
    folder, compiler = _SOURCES / "cuda", [*_compiler(), *_COMPILE, *_for_torch(), "-DUSE_CUDA"]
    commands = [[*compiler, str(file)] for file in sorted(folder.glob("*.cpp"))]
    commands += [[*nvcc, str(file)] for file in sorted(folder.glob("*.cu"))]
    _link(commands, [*nvcc, "-shared", f"-L{_torch() / 'lib'}"], ["-ltorch_cpu", "-ltorch_cuda"], output)


@functools.cache
def source_hash() -> str:
    """The hash of ``csrc`` and of the compiler's options; every library holds that of the sources it was made from."""
    digest = hashlib.sha256(repr((_COMPILE, _COMPILE_CUDA, _DEFINES)).encode())
    for file in sorted(_SOURCES.rglob("*")):
        if file.suffix in {".cpp", ".h", ".inc", ".cu", ".cuh"}:
            digest.update(f"\0{file.relative_to(_SOURCES).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:32]


def is_current(path: Path) -> bool:
    """Whether a library was made from the sources as they are; one left over from others must not run."""
    return path.is_file() and source_hash().encode() in path.read_bytes()


def built_on_first_use(torch_version: str) -> Path:
    """The library of :func:`compile_library` in the user's cache."""
    return _cached("_C", "CPU", (torch_version,), compile_library)


def built_cuda_on_first_use(torch_version: str, architectures: Sequence[str]) -> Path:
    """The library of :func:`compile_cuda_library` in the user's cache."""
    made_of = torch_version, _version([_nvcc()]), *architectures
    return _cached("_C_cuda", "CUDA", made_of, lambda output: compile_cuda_library(output, architectures))


def _cached(name: str, title: str, made_of: tuple[str, ...], compile: Callable[[Path], None]) -> Path:
    """The library in the cache, compiled if it is not there. Processes that come meanwhile wait for it."""
    from filelock import FileLock

    compiler = _compiler()
    made_of = (name, source_hash(), *made_of, *compiler, _version(compiler))
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bionas-fast"
    path = cache / f"{name}-{key}.so"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    # The lock goes with the process that holds it, however that ends.
    with FileLock(cache / f"{key}.lock"):
        if path.exists():
            return path
        for left_behind in cache.glob(f".{key}-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        print(f"bionas-fast: compiling {title} kernels, once; this takes some seconds", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{key}-", ignore_cleanup_errors=True) as folder:
            draft = Path(folder, path.name)
            compile(draft)
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
    return path


def _link(commands: list[list[str]], linker: list[str], libraries: list[str], output: Path) -> None:
    """Run the commands, each of which compiles a file, and link their objects."""
    if not commands:
        raise BuildError(f"no sources in {_SOURCES}")
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".objects-") as folder:
        objects = [f"{folder}/{index}.o" for index in range(len(commands))]
        compile = [[*command, "-c", "-o", made] for command, made in zip(commands, objects, strict=True)]
        link = [*linker, *objects, *libraries, "-o", str(output)]
        if not _run_ninja(compile, link, Path(folder)):
            # There is no ninja; or something fails, and says why when it is run again.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_run, compile))
            _run(link)


def _run_ninja(compile: list[list[str]], link: list[str], folder: Path) -> bool:
    """Have ninja run the commands, those that compile side by side. Returns whether it did, and all went well."""
    try:
        import ninja
    except ImportError:
        return False
    lines = ["rule run", "  command = $command"]
    for name, command in [*enumerate(compile), ("library", link)]:
        needed = " ".join(map(str, range(len(compile)))) if command is link else ""
        lines += [f"build {name}: run {needed}", f"  command = {shlex.join(command).replace('$', '$$')}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    try:
        done = subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", folder], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def _torch() -> Path:
    """torch's folder."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is not installed")
    return Path(spec.origin).parent


def _for_torch() -> list[str]:
    """The options for files that include torch's headers."""
    return [*_DEFINES, f'-DBIONAS_SOURCE="{source_hash()}"', f"-I{_torch() / 'include'}"]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    found = shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc") or shutil.which(f"{_CUDA_HOME}/bin/nvcc")
    if found is None:
        raise BuildError("there is no nvcc; set $CUDA_HOME to the folder of a CUDA toolkit")
    return found


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"])


def _run(command: list[str]) -> str:
    """Run a command and return its output.

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
