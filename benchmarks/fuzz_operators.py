"""Call the compiled operators with arguments that do not fit, many times: none may crash, hang or take memory.

    python benchmarks/fuzz_operators.py [--calls 20000] [--seeds 1] [--sanitize]

With ``--sanitize`` the kernels are compiled with AddressSanitizer and UndefinedBehaviorSanitizer first, which takes a
minute or two. The calls are those of tests/helpers/mismatched_calls.py, of which the tests make a few thousand.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "tests" / "helpers" / "mismatched_calls.py"


def sanitized(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Compile the kernels with sanitizers; return the program's further argument and the environment it needs."""
    from bionas_fast.native import build

    compiler = os.environ.get("CXX", "c++")
    os.environ["CXX"] = f"{compiler} -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
    # Optimised, they would take half an hour to compile, and an access might be removed before it is checked.
    build._KERNELS = build._OPERATORS = ("-O0",)
    library = folder / "_C.so"
    build.compile_library(library)
    runtimes = [
        subprocess.run(
            [*compiler.split(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python and torch are not compiled with them, and leak on purpose.
    environment = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"}
    return [str(library)], environment


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--calls", type=int, default=20_000, help="mismatched calls per seed")
    options.add_argument("--seeds", type=int, default=1, help="number of seeds")
    options.add_argument("--sanitize", action="store_true", help="compile the kernels with sanitizers first")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        further, environment = sanitized(Path(folder)) if given.sanitize else ([], {})
        progress = Path(folder, "progress")
        for seed in range(given.seeds):
            progress.write_bytes(bytes(8))
            command = [sys.executable, PROGRAM, str(seed), str(given.calls), progress, *further]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
            if done.returncode:
                call = struct.unpack("q", progress.read_bytes())[0]
                sys.exit(f"call {call} of seed {seed} ended with {done.returncode}:\n{done.stderr[-4000:]}")
            raised, ran = map(int, re.findall(r"\d+", done.stdout))
            print(f"seed {seed}: {raised} calls raised, {ran} ran, none crashed", flush=True)


if __name__ == "__main__":
    main()
