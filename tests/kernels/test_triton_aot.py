"""Every Triton kernel compiles for every card we name, spills no register and fits the card's shared memory.

Each kind of a kernel (blocks, precision, dtype) is compiled for one card, in turn, and with ``--every-card`` for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib import metadata
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists for Linux only")

#: Shared memory that one block can have, in KiB: CUDA C++ Programming Guide, technical specifications.
SHARED = {80: 163, 90: 227, 100: 227}
#: The number of kinds of each kernel; of those that have modes, in each.
OF_A_MODE = {"weight_kernel": 3, "product_kernel": 5, "depthwise_kernel": 4}
OTHERS = {
    **{"segments_kernel": 4, "stage_kernel": 6, "error_kernel": 6, "weight_gradient_kernel": 6, "input_kernel": 3},
    **{"mixed_sum_kernel": 3, "product_sum_kernel": 3, "pooling_kernel": 3, "pooling_backward_kernel": 3},
    **{"add_up_kernel": 3, "reduction_kernel": 5, "reduction_error_kernel": 5, "reduction_weight_kernel": 5},
}
#: Kernels of float32 only; sums and their results are float32, whatever the maps are.
IN_FLOAT32 = {"moments_kernel": 8, "gradients_kernel": 4}
WITH_PRODUCTS = {
    *("product_kernel", "stage_kernel", "error_kernel", "weight_gradient_kernel"),
    *("reduction_kernel", "reduction_error_kernel", "reduction_weight_kernel"),
}
MODES = ("sign", "stored_sign", "drawn_sign")
SIZES = ("any", "multiples of 16")
KINDS = {
    **{(kernel, mode): count for kernel, count in OF_A_MODE.items() for mode in MODES},
    **{(kernel, None): count for kernel, count in (OTHERS | IN_FLOAT32).items()},
}
DTYPES = [str(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def every_card(request) -> bool:
    return request.config.getoption("--every-card")


@pytest.fixture(scope="module")
def builds(tmp_path_factory, every_card: bool) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # saves time
    script = Path(__file__).parents[1] / "helpers" / "triton_aot.py"
    command = [sys.executable, script, *["--every-card"] * every_card]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_everything_was_compiled(builds: list[dict], every_card: bool):
    """Every kernel for every card, in every dtype and with all sizes; each kind once, or once for every card."""
    seen = {(b["kernel"], b["dtype"], b["options"].get("MODE"), b["sizes"], b["architecture"]) for b in builds}
    of = {(kernel, mode): DTYPES[: 1 if kernel in IN_FLOAT32 else 3] for kernel, mode in KINDS}
    assert {(kernel, mode, dtype) for kernel, dtype, mode, _, _ in seen} == {
        (*kernel, dtype) for kernel, dtypes in of.items() for dtype in dtypes
    }
    assert {(kernel, mode, sizes) for kernel, _, mode, sizes, _ in seen} == {
        (*kernel, sizes) for kernel, sizes in product(KINDS, (*SIZES, "one"))
    }
    assert len({json.dumps(b, sort_keys=True) for b in builds}) == len(builds)
    specialised = [b for b in builds if not (every_card and b["sizes"] == "one")]  # there, ones come in addition
    on = Counter((b["kernel"], b["options"].get("MODE"), b["architecture"]) for b in specialised)
    of_cards = {kernel: [on[(*kernel, card)] for card in SHARED] for kernel in KINDS}
    assert sum(map(sum, of_cards.values())) == len(specialised)
    if not every_card:
        assert {kernel: sum(counts) for kernel, counts in of_cards.items()} == KINDS
        assert [kernel for kernel, counts in of_cards.items() if min(counts) < KINDS[kernel] // len(SHARED)] == []
        return
    assert of_cards == {kernel: [count] * len(SHARED) for kernel, count in KINDS.items()}
    assert {(kernel, mode, dtype, card) for kernel, dtype, mode, _, card in seen} == {
        (*kernel, dtype, card) for kernel, dtypes in of.items() for dtype in dtypes for card in SHARED
    }
    assert {(kernel, mode, sizes, card) for kernel, _, mode, sizes, card in seen if sizes != "one"} == {
        (*kernel, sizes, card) for kernel, sizes, card in product(KINDS, SIZES, SHARED)
    }


def test_no_kernel_spills(builds: list[dict]):
    # The assembler of Triton 3.6 puts up to 16 bytes on the stack of some kernels rather than pass 64 or 128 registers.
    stack = 16 if metadata.version("triton").startswith("3.6.") else 0
    assert [b for b in builds if b["STACK"] > stack or b["LOCAL"]] == []


def test_shared_memory_fits(builds: list[dict]):
    assert [b for b in builds if b["shared"] > SHARED[b["architecture"]] * 1024] == []


def test_products_sum_over_blocks_of_16_at_least(builds: list[dict]):
    # Triton 3.6 compiles no smaller ones; later releases do for float32.
    assert {b["kernel"] for b in builds if b["depths"]} == WITH_PRODUCTS
    assert [b for b in builds if min(b["depths"], default=16) < 16] == []
