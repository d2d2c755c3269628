"""Helpers of the tests of Triton kernels.

The interpreter must be chosen before Triton is imported, so their tests, named ``interpreted_*``, run in a process that
has chosen it, one for all files. Where there is a card, they run compiled as well.
bfloat16 is left to the card: the interpreter does not round it as one does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import cards
from helpers.tolerances import TOLERANCES

#: Options of every launch besides the kernel's own, which are written in capitals.
OPTIONS = ("num_warps", "num_stages", "maxnreg")
#: Whether the launchers can be imported and run in this process: under the interpreter, or compiled on a card.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or cards.COMPILED


def run_interpreted(*files: Path) -> None:
    """Run the functions of test files that are named ``interpreted_*``, under the interpreter."""
    _run(*map(str, files), environment=os.environ | {"TRITON_INTERPRET": "1"})


def run_compiled(file: str) -> None:
    """Run the same functions compiled, on tensors of a CUDA device, and with bfloat16, too."""
    environment = {name: value for name, value in cards.environment().items() if name != "TRITON_INTERPRET"}
    _run(file, "--device", "cuda", environment=environment | {"BIONAS_FAST_TESTS_COMPILED": "1"})


def _run(*words: str, environment: dict[str, str]) -> None:
    pytest.importorskip("triton", reason="Triton exists for Linux only")
    options = ["-q", "-n0", "-p", "no:cacheprovider", "-o", "python_functions=interpreted_*", *words]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    print(result.stdout[-4000:], result.stderr[-4000:])
    summary = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 0, summary
    assert re.match(r"\d+ passed(, \d+ warnings?)? in", summary), summary


def by_name(name: str, cases: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, cases.values(), ids=cases)


def some_of(cases: dict, *names: str) -> dict:
    """These cases under the interpreter, where a program takes up to a second; all of them on a card."""
    return cases if cards.COMPILED else {name: cases[name] for name in names}


_NARROW = [torch.float16, *([torch.bfloat16] if cards.COMPILED else [])]
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, *_NARROW], ids=str)
every_narrow_dtype = pytest.mark.parametrize("dtype", _NARROW, ids=str)


def strided(tensor: Tensor) -> Tensor:
    """Copy a tensor to memory with gaps between the values, along every axis, full of NaN."""
    gaps = torch.full([2 * size for size in tensor.shape], torch.nan, dtype=tensor.dtype)
    view = gaps[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def assert_near(ours: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Within the tolerance of ``dtype``; cancelled sums are compared relative to the largest element."""
    tolerance = TOLERANCES[dtype]
    for a, b in zip(ours, wanted, strict=True):
        largest = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=tolerance["rtol"], atol=tolerance["atol"] * largest)


def record_launches(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> set[tuple]:
    """Make the module's kernels only record their launches, as :func:`listed` does.

    The dtype that a kernel is compiled for is the narrowest of its arguments: sums are wider.
    """
    launched: set[tuple] = set()

    class Spy:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]):
            def launch(**arguments: Any) -> None:
                dtypes = {a.dtype for a in arguments.values() if isinstance(a, Tensor) and a.is_floating_point()}
                options = {name: value for name, value in arguments.items() if name.isupper() or name in OPTIONS}
                launched.add((self.kernel, min(dtypes, key=lambda t: t.itemsize), *sorted(options.items())))

            return launch

    for name in {name for name in vars(module) if name.endswith("_kernel")}:
        monkeypatch.setattr(module, name, Spy(getattr(module, name)))
    return launched


def listed(module: ModuleType) -> set[tuple]:
    """The configurations that are compiled ahead of time for real cards."""
    return {(c.kernel, c.dtype, *sorted(c.options.items())) for c in module.configurations()}
