"""The arithmetic of CUDA devices: the precision of float32 products, and whether results repeat bit for bit.

These are settings of PyTorch for all threads of the process. On the CPU they change nothing: products are IEEE there,
and every run repeats.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from bionas_fast.choices import Products
from bionas_fast.errors import unknown
from bionas_fast.kernels.launching import precisions

#: The workspace with which cuBLAS repeats bit for bit; read when a process first uses it.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def precision(products: Products) -> Iterator[None]:
    """Compute float32 convolutions and matrix products on CUDA devices in this precision inside the block.

    It holds for cuDNN, cuBLAS and the Triton kernels of this package alike, in all threads of the process, and also in
    backward passes. Outside, PyTorch's flags hold: by default, TF32 for convolutions and IEEE for matrix products and
    kernels.

    Args:
        products: ``ieee``: exact but for the rounding of float32 sums; or ``tf32``: of factors rounded to 11 bits, a
            relative error of about 5e-4, on tensor cores.

    Raises:
        InputError: an unknown precision.
    """
    known = precisions(torch.float32)
    if products not in known:
        raise unknown("precision", products, known)
    flags: Any = torch.backends  # whose modules set attributes that type checkers do not see
    matmul, cudnn = flags.cuda.matmul, flags.cudnn
    before = [own.fp32_precision for own in (matmul, cudnn.conv, cudnn.rnn)]
    # PyTorch has two sets of flags. Setting the older ones sets both; reading them raises if the caller set only the
    # newer ones.
    older: list[bool | None] = [None, None]
    with suppress(RuntimeError):
        older[0] = matmul.allow_tf32
    with suppress(RuntimeError):
        older[1] = cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = products == "tf32"
        yield
    finally:
        if older[0] is not None:
            matmul.allow_tf32 = older[0]
        if older[1] is not None:
            cudnn.allow_tf32 = older[1]
        matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


@contextmanager
def repeatable(enabled: bool = True) -> Iterator[None]:
    """Use deterministic algorithms only inside the block; operations without one raise RuntimeError.

    Args:
        enabled: otherwise the caller's setting is kept.
    """
    if not enabled:
        yield
        return
    utils: Any = torch.utils.deterministic
    cudnn = torch.backends.cudnn
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, benchmark = utils.fill_uninitialized_memory, cudnn.benchmark
    try:
        if not before:
            utils.fill_uninitialized_memory = False  # nothing reads such memory, and filling it takes time
        cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        utils.fill_uninitialized_memory, cudnn.benchmark = fill, benchmark


def prepare_repeatable() -> None:
    """Set the environment that :func:`repeatable` needs, unless the user has; call it before CUDA is first used."""
    name, value = _WORKSPACE
    os.environ.setdefault(name, value)


def not_repeatable(error: RuntimeError) -> str | None:
    """Return the operation that has no deterministic implementation, from the error of PyTorch; None for others."""
    found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    if found is not None:
        return found[1]
    return "cuBLAS" if _WORKSPACE[0] in str(error) else None
