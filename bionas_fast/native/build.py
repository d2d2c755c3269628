"""Compilation of the kernels: ahead of time, for ``setup.py``, or on first use, into the user's cache.

The cache is ``$XDG_CACHE_HOME/bionas-fast``, by default in ``~/.cache``; C++ is compiled by ``$CXX``, by default
``c++``, and CUDA by ``nvcc`` from ``$CUDA_HOME``, the path or ``/usr/local/cuda``.

On first use the kernels are compiled for the fastest instruction set of this machine, with
``BIONAS_FAST_INSTRUCTION_SETS=all`` for all that it has; ahead of time, for all that there are.

``setup.py`` runs this file alone, in environments that may contain only the standard library; all other modules are
imported on use.
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
#: Folder of the sources: inside an installed package, or next to the package in a checkout.
_SOURCES = next((folder for folder in (_HERE / "csrc", _HERE.parent / "csrc") if folder.is_dir()), _HERE / "csrc")

# The version of torch's stable ABI, 2.11: the libraries run on it and on every later torch.
_DEFINES = ("-DTORCH_TARGET_VERSION=0x020b000000000000",)
_COMPILE = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
#: The kernels, which include no torch header; and the operators, which only unpack their arguments.
_KERNELS, _OPERATORS = ("-O3",), ("-O1",)
_AVX512 = {"__FMA__", "__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__"}
#: The variants of a kernel by number, that of the floats in a vector register or 32 for AVX-512 with products of
#: bfloat16, and what a compiler defines for a machine that has them.
_LANES = {
    32: {*_AVX512, "__AVX512BF16__"},
    16: _AVX512,
    8: {"__FMA__", "__AVX2__"},
    4: {"__x86_64__"},
}
_CUDA_HOME = "/usr/local/cuda"
_COMPILE_CUDA = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")


class BuildError(Exception):
    """The kernels could not be compiled; the message says why, in one line."""


def compile_library(output: Path, lanes: int = 0) -> None:
    """Compile ``csrc/*.cpp`` and ``csrc/cpu/*.cpp`` into one library.

    Needs torch's headers and libraries, but does not import torch.

    Args:
        output: the library.
        lanes: the variants of the kernels, as the sum of their numbers, 32 + 16 + 8 + 4;
            by default all.

    Raises:
        BuildError: the compiler failed; the message contains its error.
    """
    compiler = _compiler()
    # The files of the largest kernels, of stages, come last by name and take longest; so they begin first.
    kernels, variant = sorted((_SOURCES / "cpu").glob("*.cpp"), reverse=True), f"-DBIONAS_LANES={lanes}"
    commands = [[*compiler, *_COMPILE, *_KERNELS, variant, str(file)] for file in kernels]
    operators = sorted(_SOURCES.glob("*.cpp"))
    commands += [[*compiler, *_COMPILE, *_OPERATORS, variant, *_for_torch(), str(file)] for file in operators]
    _link(commands, [*compiler, "-shared", f"-L{_torch() / 'lib'}"], ["-ltorch_cpu"], output)


def compile_cuda_library(output: Path, architectures: Sequence[str]) -> None:
    """Compile ``csrc/cuda`` into one library.

    Needs ``nvcc``, a C++ compiler supported by it, and the headers and libraries of a torch with CUDA, but no GPU.

    Args:
        architectures: compute capabilities, such as ``80`` or ``90``; the library also runs on newer GPUs.

    Raises:
        BuildError: the compiler failed (the message contains its error), or an architecture is invalid.
    """
    wrong = [name for name in architectures if not name.isdecimal()]
    if wrong or not architectures:
        raise BuildError(f"architectures: expected some such as 80 or 90, got {', '.join(wrong) or 'none'}")
    nvcc = [_nvcc(), *_COMPILE_CUDA]
    nvcc += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    newest = max(architectures, key=int)
    nvcc.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")  # PTX, for newer GPUs
    folder, compiler = _SOURCES / "cuda", [*_compiler(), *_COMPILE, *_OPERATORS, *_for_torch(), "-DUSE_CUDA"]
    commands = [[*compiler, str(file)] for file in sorted(folder.glob("*.cpp"))]
    commands += [[*nvcc, str(file)] for file in sorted(folder.glob("*.cu"))]
    _link(commands, [*nvcc, "-shared", f"-L{_torch() / 'lib'}"], ["-ltorch_cpu", "-ltorch_cuda"], output)


@functools.cache
def source_hash() -> str:
    """Compute the hash of ``csrc`` and of the compiler's options; every library contains the hash of its sources."""
    digest = hashlib.sha256(repr((_COMPILE, _KERNELS, _OPERATORS, _COMPILE_CUDA, _DEFINES)).encode())
    for file in sorted(_SOURCES.rglob("*")):
        if file.suffix in {".cpp", ".h", ".inc", ".cu", ".cuh"}:
            digest.update(f"\0{file.relative_to(_SOURCES).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:32]


def is_current(path: Path) -> bool:
    """Whether a library was compiled from the current sources; an outdated one must not run."""
    return path.is_file() and source_hash().encode() in path.read_bytes()


def built_on_first_use(torch_version: str) -> Path:
    """Return the library of :func:`compile_library` in the user's cache, compiled for this machine if missing."""
    lanes = lanes_here(os.environ.get("BIONAS_FAST_INSTRUCTION_SETS") == "all")
    return _cached("_C", "CPU", (torch_version, str(lanes)), lambda output: compile_library(output, lanes))


def built_cuda_on_first_use(torch_version: str, architectures: Sequence[str]) -> Path:
    """Return the library of :func:`compile_cuda_library` in the user's cache, compiled if missing."""
    made_of = torch_version, _version([_nvcc()]), *architectures
    return _cached("_C_cuda", "CUDA", made_of, lambda output: compile_cuda_library(output, architectures))


def _cached(name: str, title: str, made_of: tuple[str, ...], compile: Callable[[Path], None]) -> Path:
    """Return a library in the cache, compiled if missing; concurrent processes wait for the compilation."""
    from filelock import FileLock

    compiler = _compiler()
    made_of = (name, source_hash(), *made_of, *compiler, _version(compiler))
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bionas-fast"
    path = cache / f"{name}-{key}.so"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    # A file lock is released with its process, even if that is killed.
    with FileLock(cache / f"{key}.lock"):
        if path.exists():
            return path
        for left_behind in cache.glob(f".{key}-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        print(f"bionas-fast: compiling {title} kernels, once; this takes half a minute", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{key}-", ignore_cleanup_errors=True) as folder:
            draft = Path(folder, path.name)
            compile(draft)
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
    return path


def _link(commands: list[list[str]], linker: list[str], libraries: list[str], output: Path) -> None:
    """Run the commands, each of which compiles one file, and link the objects."""
    if not commands:
        raise BuildError(f"no sources in {_SOURCES}")
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".objects-") as folder:
        objects = [f"{folder}/{index}.o" for index in range(len(commands))]
        compile = [[*command, "-c", "-o", made] for command, made in zip(commands, objects, strict=True)]
        link = [*linker, *objects, *libraries, "-o", str(output)]
        if not _run_ninja(compile, link, Path(folder)):
            # ninja is missing, or a command failed; rerunning it yields its error.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_run, compile))
            _run(link)


def _run_ninja(compile: list[list[str]], link: list[str], folder: Path) -> bool:
    """Run the commands by ninja, compiling in parallel; return whether all of them succeeded."""
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
    """Return the folder of torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is not installed")
    return Path(spec.origin).parent


def _for_torch() -> list[str]:
    """Return the compiler options of files that include torch's headers."""
    return [*_DEFINES, f'-DBIONAS_SOURCE="{source_hash()}"', f"-I{_torch() / 'include'}"]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def lanes_here(every: bool) -> int:
    """Return the fastest variant, or every one, that this machine runs; 0, for all, if the compiler does not tell."""
    try:
        defined = {*_run([*_compiler(), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]).split()}
    except BuildError:
        return 0
    found = [lanes for lanes, needed in _LANES.items() if needed <= defined]
    return sum(found if every else found[:1])


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
        BuildError: the command cannot be run, or fails.
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
