"""Building of the compiled kernels: ahead of time, on first use, by several processes at once, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bionas_fast.native import build

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")

pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform == "win32", reason="no C++ compiler")

#: Loads the library of a checkout and prints what became of it.
STATUS = """
import json
from bionas_fast import native
from bionas_fast.native import build
assert native.load() == native.load() == native.status().available
print(json.dumps({**native.status()._asdict(), "path": str(native.status().path)}))
"""

#: A compiler that notes its calls and, with $STALL, stops half-way through writing the library.
COMPILER_SCRIPT = f"""#!/bin/sh
echo "$@" >> "$CALLS"
case "$STALL $*" in
  "yes "*-shared*)
    for output; do :; done
    printf half > "$output"
    touch "$CALLS.stalled"
    exec sleep 60 ;;
esac
exec {COMPILER} "$@"
"""


class Checkout:
    """A copy of the sources, for speed without a kernel, and a cache and a compiler of its own."""

    def __init__(self, folder: Path):
        self.package = folder / "bionas_fast"
        self.csrc = folder / "csrc"
        self.cache = folder / "cache"
        self.calls = folder / "calls"
        self.compiler = folder / "compiler"
        self.package.mkdir()
        (self.package / "__init__.py").touch()
        shutil.copytree(ROOT / "bionas_fast" / "native", self.package / "native")
        (self.csrc / "cpu").mkdir(parents=True)
        for name in ("library.cpp", "error_code.h"):
            shutil.copy(ROOT / "csrc" / name, self.csrc)
        for name in ("dispatch", "memory_pool"):
            for file in (ROOT / "csrc" / "cpu").glob(f"{name}.*"):
                shutil.copy(file, self.csrc / "cpu")
        self.compiler.write_text(COMPILER_SCRIPT)
        self.compiler.chmod(0o755)
        own = {"XDG_CACHE_HOME": self.cache, "CXX": self.compiler, "CALLS": self.calls, "PYTHONPATH": folder}
        self.environment = os.environ | {name: str(path) for name, path in own.items()}
        self.folder = folder

    def start(self, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", STATUS],
            env={**self.environment, **environment},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def status(self, **environment: str) -> dict:
        return self.finish(self.start(**environment))[0]

    @staticmethod
    def finish(process: subprocess.Popen) -> tuple[dict, str]:
        output, messages = process.communicate(timeout=120)
        assert process.returncode == 0, messages
        return json.loads(output), messages

    def builds(self) -> int:
        return sum("-shared" in line.split() for line in self.calls.read_text().splitlines())

    def libraries(self) -> list[Path]:
        return list((self.cache / "bionas-fast").glob("*.so"))


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_processes_that_start_at_once_share_one_build(checkout):
    processes = [checkout.start(), checkout.start()]
    results = [checkout.finish(process) for process in processes]
    assert [status["available"] for status, _ in results] == [True, True]
    assert [status["path"] for status, _ in results] == [str(path) for path in checkout.libraries() * 2]
    assert checkout.builds() == 1
    # The user hears of it once.
    assert sum(messages.count("compiling CPU kernels") for _, messages in results) == 1
    assert checkout.status()["available"] and checkout.builds() == 1


def test_a_killed_build_leaves_nothing_behind(checkout):
    process = checkout.start(STALL="yes")
    try:
        deadline = time.monotonic() + 60
        while not checkout.calls.with_name("calls.stalled").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert checkout.libraries() == []
        # The compiler of the dead process still runs, and must not be waited for.
        assert checkout.status()["available"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert {path.suffix for path in (checkout.cache / "bionas-fast").iterdir()} == {".so", ".lock"}
    assert len(checkout.libraries()) == 1


def test_a_library_compiled_ahead_of_time_is_used_while_it_fits_the_sources(checkout):
    script = STATUS.replace("assert", "build.compile_library(native.library._AHEAD_OF_TIME)\nassert")
    subprocess.run([sys.executable, "-c", script], env=checkout.environment, cwd=checkout.folder, check=True)
    assert checkout.status(CXX="/bin/false")["path"] == str(checkout.package / "_C.abi3.so")
    with open(checkout.csrc / "cpu" / "dispatch.h", "a") as file:
        file.write("// changed\n")
    assert "/bin/false" in checkout.status(CXX="/bin/false")["reason"]
    assert not checkout.cache.exists()


def test_a_broken_ahead_of_time_library_is_passed_over(checkout):
    script = "from bionas_fast.native import build\nprint(build.source_hash(), end='')"
    own = {"env": checkout.environment, "cwd": checkout.folder}
    run = subprocess.run([sys.executable, "-c", script], **own, capture_output=True, text=True, check=True)
    (checkout.package / "_C.abi3.so").write_text(run.stdout)
    assert "/bin/false" in checkout.status(CXX="/bin/false")["reason"]


class TestNoLibrary:
    def test_no_compiler(self, checkout):
        status = checkout.status(CXX="/nowhere/c++")
        assert not status["available"]
        assert status["reason"] == "/nowhere/c++ does not run: No such file or directory"

    def test_a_compiler_that_fails(self, checkout):
        status = checkout.status(CXX="/bin/false")
        assert not status["available"]
        assert status["reason"] == "/bin/false failed: exit status 1"
        assert checkout.libraries() == []

    def test_sources_that_do_not_compile(self, checkout):
        (checkout.csrc / "library.cpp").write_text("int broken() { return nothing; }")
        reason = checkout.status()["reason"]
        assert "library.cpp" in reason and "nothing" in reason
        assert checkout.libraries() == []

    def test_a_cache_that_is_not_a_folder(self, checkout):
        checkout.cache.write_text("")
        assert "Not a directory" in checkout.status()["reason"]


def test_import_compiles_nothing_and_is_about_that_of_torch(checkout):
    own = {"XDG_CACHE_HOME": str(checkout.cache), "CXX": str(checkout.compiler), "CALLS": str(checkout.calls)}
    script = "import bionas_fast.cli, bionas_fast.native, sys; print(*sys.modules)"
    imported = subprocess.check_output([sys.executable, "-c", script], env={**os.environ, **own}, cwd=ROOT, text=True)
    assert not checkout.calls.exists()
    assert not {"torch._dynamo", "matplotlib", "scipy", "cma", "torchvision", "sklearn"} & set(imported.split())


def test_every_variant_is_valid():
    """Also those of processors that this machine is not: they are compiled ahead of time only."""
    for path in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
        command = [COMPILER, "-std=c++17", "-fsyntax-only", "-w", "-DBIONAS_LANES=16", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("defined", "fastest", "every"),
    [
        ("__x86_64__ __AVX2__ __FMA__ __AVX512F__ __AVX512BW__ __AVX512DQ__ __AVX512VL__", 16, 28),
        ("__x86_64__ __AVX2__ __FMA__ __AVX512F__", 8, 12),
        ("__x86_64__ __AVX2__", 4, 4),
        ("__aarch64__ __ARM_NEON", 0, 0),
    ],
)
def test_variants_of_a_machine(defined, fastest, every, monkeypatch):
    monkeypatch.setattr(build, "_run", lambda command: "\n".join(f"#define {name} 1" for name in defined.split()))
    assert build.lanes_here(every=False) == fastest
    assert build.lanes_here(every=True) == every


def test_a_compiler_that_does_not_tell_compiles_all(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    assert build.lanes_here(every=False) == 0


def test_the_variants_that_were_asked_for_are_there(checkout):
    here, found = build.lanes_here(every=True), {}
    for asked in ("", "all"):
        done = subprocess.run(
            [sys.executable, "-c", "import json; from bionas_fast import native; print(json.dumps(native.isas()))"],
            env={**checkout.environment, "BIONAS_FAST_INSTRUCTION_SETS": asked},
            cwd=checkout.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        found[asked] = json.loads(done.stdout)
    names = {32: "avx512_bf16", 16: "avx512", 8: "avx2", 4: "baseline"}
    assert found["all"] == [name for lanes, name in names.items() if here & lanes]
    assert found[""] == found["all"][:1]
