"""CUDA devices in tests: seen by those that ask for one, with ``--device cuda``; hidden from all others.

What runs on the CPU here must do so on a machine with a GPU: commands and searches, whose device is chosen by itself.
"""

from __future__ import annotations

import os

import pytest
import torch

_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")

#: Whether this process runs the functions ``interpreted_*`` compiled, on a CUDA device.
COMPILED = os.environ.get("BIONAS_FAST_TESTS_COMPILED") == "1"


def begin(device: str) -> None:
    """Hide the CUDA devices from this process, unless ``device`` is cuda, and from all that it starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for all tests use deterministic algorithms
    if device == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: there is no CUDA device")
        torch.cuda.init()
        torch.cuda.device_count()  # which torch remembers from now on
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def environment() -> dict[str, str]:
    """The environment of a process that sees the CUDA devices."""
    others = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return others if _VISIBLE is None else others | {"CUDA_VISIBLE_DEVICES": _VISIBLE}
