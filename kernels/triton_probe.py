"""A small kernel that shows whether Triton can compile, and load what it compiled, on this machine."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def probe_kernel(p_out, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_ones = tl.full((BLOCK, BLOCK), 1, tl.float32)
    tl.store(p_out + o[:, None] * BLOCK + o[None, :], tl.dot(b_ones, b_ones, input_precision="ieee"))


def failure() -> str:
    """Compile the kernel for the current GPU, with its launcher, and load both; return the reason of a failure.

    Nothing is launched and no tensor is made, so that it also works under modes of fake tensors.
    """
    try:
        _ = probe_kernel.warmup(torch.float32, BLOCK=16, grid=(1,)).run
    except Exception as error:  # no compiler, no Python.h, no driver, an unknown GPU: each raises something else
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"Triton cannot compile a kernel: {reason:.200}"
    return ""
