"""Every Triton kernel compiles for every card we name, spills no register and fits the card's shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists for Linux only")

#: Shared memory that one block can have, in KiB: CUDA C++ Programming Guide, technical specifications.
SHARED = {80: 163, 90: 227, 100: 227}
OF_A_MODE = {"weight_kernel", "product_kernel", "depthwise_kernel"}
OTHERS = {
    *("segments_kernel", "stage_kernel", "error_kernel", "weight_gradient_kernel", "input_kernel"),
    *("mixed_sum_kernel", "product_sum_kernel", "pooling_kernel", "pooling_backward_kernel"),
}
#: Batch normalisation has sums and results in float32, whatever the maps are.
IN_FLOAT32 = {"moments_kernel", "gradients_kernel"}
WITH_PRODUCTS = {"product_kernel", "stage_kernel", "error_kernel", "weight_gradient_kernel"}
LAUNCHES = {*product(["any", "multiples of 16"], SHARED), ("one", 80)}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # saves time
    script = Path(__file__).parents[1] / "helpers" / "triton_aot.py"
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_everything_was_compiled(builds: list[dict]):
    seen = {(b["kernel"], b["dtype"], b["options"].get("MODE"), b["sizes"], b["architecture"]) for b in builds}
    dtypes = [str(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    kernels = {*product(OF_A_MODE, ["sign", "stored_sign", "drawn_sign"]), *product(OTHERS, [None])}
    cards = {(kernel, mode, dtype, card) for (kernel, mode), dtype, card in product(kernels, dtypes, SHARED)}
    float32 = {*product(IN_FLOAT32, [None])}
    cards |= {(kernel, mode, dtypes[0], card) for (kernel, mode), card in product(float32, SHARED)}
    assert {(kernel, mode, dtype, card) for kernel, dtype, mode, _, card in seen} == cards
    sizes = {(kernel, mode, *launch) for (kernel, mode), launch in product(kernels | float32, LAUNCHES)}
    assert {(kernel, mode, size, card) for kernel, _, mode, size, card in seen} == sizes
    assert len({json.dumps(b, sort_keys=True) for b in builds}) == len(builds)


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
