"""Programs that run kernels without PyTorch, under sanitizers; each is compiled once for the contents of its sources.

``python tests/helpers/programs.py FOLDER`` compiles all of them, without any package, so that it can run while
PyTorch is being installed; tests find the programs if ``BIONAS_FAST_TEST_PROGRAMS`` names the folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
CPP, SOURCES = ROOT / "tests" / "cpp", ROOT / "csrc"
COMPILER = shutil.which("c++")
SANITIZERS = ("address,undefined", "thread")
#: Programs of the CPU kernels.
NAMES = tuple(sorted(path.stem for path in CPP.glob("*.cpp")))


class Unavailable(Exception):
    """The compiler cannot compile such programs, or they do not run here."""


class CompileError(Exception):
    """What the compiler said."""


class Programs:
    """The programs in a folder, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def of_cpu(self, name: str, sanitizer: str) -> Path:
        """Compile ``tests/cpp/NAME.cpp`` and all CPU kernels.

        Raises:
            Unavailable: there is no such compiler or sanitizer.
        """
        kernels = SOURCES / "cpu"
        # A third of the time to compile of -O1, and no access is optimised away before it is checked.
        flags = ["-std=c++17", "-O0", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-pthread"]
        if sanitizer == "address,undefined":
            # A quarter of the time to compile: a pointer out of bounds is reported where it is used.
            flags.append("-fno-sanitize=pointer-overflow")
            lanes = _build().lanes_here(every=True)  # the others cannot run here
            if lanes & 32:  # which has all loops of 16
                lanes -= 16
            flags.append(f"-DBIONAS_LANES={lanes}")
        if sanitizer == "thread":  # what threads share does not depend on the instruction set
            flags.append("-DBIONAS_X86=0")
        self._probe(flags, "int main() {}")
        own = kernels, [f"-I{kernels}"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = sorted(kernels.glob("*.cpp"))
            objects = [*pool.map(lambda path: self._made([*flags, "-c", path], *own, ".o"), paths)]
        return self._made([*flags, CPP / f"{name}.cpp", *objects], *own)

    def of_cuda(self, sanitizer: str = "", sources: Path = SOURCES) -> Path:
        """Compile the Hebbian CUDA kernels for the host, ``tests/cpp/cuda/hebbian.cpp``.

        Args:
            sanitizer: none by default.
            sources: the folder of the kernels.

        Raises:
            Unavailable: there is no such compiler or sanitizer.
        """
        flags = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-pthread"]
        if sanitizer:
            flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
        self._probe(flags, "#include <barrier>\nint main() { std::barrier<> one(1); }")
        included = [f"-I{CPP}", f"-I{sources / 'cuda'}"]
        return self._made([*flags, CPP / "cuda" / "hebbian.cpp"], sources / "cuda", included)

    def _probe(self, flags: Sequence[str], text: str) -> None:
        source = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp"
        source.write_text(text)
        try:
            subprocess.run([self._made([*flags, source], source.parent, [])], check=True, capture_output=True)
        except (CompileError, subprocess.CalledProcessError):
            raise Unavailable(f"{COMPILER} has no {shlex.join(flags)} that runs here") from None

    def _made(self, words: Sequence[str | Path], reads: Path, included: Sequence[str], suffix: str = "") -> Path:
        """Compile, unless that has been done with these words and these contents of the sources.

        Raises:
            Unavailable: there is no compiler.
            CompileError: the sources do not compile.
        """
        if COMPILER is None:
            raise Unavailable("no C++ compiler")
        command = [COMPILER, *map(str, words), *included]
        digest = hashlib.sha256(f"{shlex.join(command)} {_contents(reads)} {_contents(CPP)}".encode())
        output = self.folder / (digest.hexdigest()[:32] + suffix)
        with _locked(output.with_suffix(".lock")):
            if not output.exists():
                part = output.with_suffix(".part" + suffix)
                done = subprocess.run([*command, "-o", part], capture_output=True, text=True)
                if done.returncode:
                    raise CompileError(done.stderr)
                os.replace(part, output)
        return output


@functools.cache
def _contents(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".h", ".inc", ".cuh", ".cu")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def _build():
    """The package's module that builds the kernels, without the package."""
    spec = importlib.util.spec_from_file_location("_build", ROOT / "bionas_fast" / "native" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["_build"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    programs = Programs(Path(sys.argv[1]))
    with contextlib.suppress(Unavailable):  # the tests say so
        for sanitizer in SANITIZERS:
            for name in NAMES:
                programs.of_cpu(name, sanitizer)
            programs.of_cuda(sanitizer)
        programs.of_cuda()
