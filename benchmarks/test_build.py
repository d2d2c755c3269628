"""How long compiling the kernels takes."""

from __future__ import annotations

import subprocess
import sys
import time

from bionas_fast.native import build


def test_build(benchmark, report, tmp_path):
    library = tmp_path / "_C.so"
    start = time.perf_counter()
    benchmark.pedantic(build.compile_library, args=(library,), rounds=1)
    taken = time.perf_counter() - start
    assert build.source_hash().encode() in library.read_bytes()
    program = f"import torch; torch.ops.load_library({str(library)!r}); print(torch.ops.bionas_fast_native.isas())"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "baseline" in loaded
    report.add("compiling csrc, every instruction set", f"{taken:6.1f} s [at most 60 s]")
