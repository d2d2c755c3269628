"""Compile every configuration of the Triton kernels for every card we name, without having one.

``python tests/triton_aot.py`` prints one JSON line a kernel. It runs in a process of its own: under the interpreter,
Triton compiles nothing.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bionas_fast.kernels.feedback import triton as kernels

ARCHITECTURES = (80, 90, 100)
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
OPTIONS = ("num_warps", "num_stages")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def source(configuration: Any, sizes: str) -> ASTSource:
    """The kernel specialised as a launch does it: ones and unread tensors are constants, 16 may divide the rest."""
    kernel, dtype, ones, options = configuration
    constants: dict[str, Any] = {name: value for name, value in options.items() if name not in OPTIONS}
    constants |= dict.fromkeys(ones, 1)
    unread = {"p_stored": "stored_sign", "p_stream": "drawn_sign"}
    constants |= {name: None for name, mode in unread.items() if options["MODE"] != mode}
    types = {"p_stored": "*fp32", "p_stream": "*i64", "bound": "fp32", "scale": "fp32"}
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        default = POINTERS[dtype] if name.startswith("p_") else "i32"
        if sizes == "one" and types.get(name, default) == "i32":
            constants.setdefault(name, 1)
        signature[name] = "constexpr" if name in constants else types.get(name, default)
        if signature[name].startswith("*") or (sizes == "multiples of 16" and signature[name] == "i32"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def build(index: int, sizes: str, architecture: int) -> dict[str, Any]:
    """What the kernel of configuration ``index`` takes of the card."""
    configuration = list(kernels.configurations())[index]
    options = {name: configuration.options[name] for name in OPTIONS}
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source(configuration, sizes), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        "kernel": configuration.kernel.__name__,
        "dtype": str(configuration.dtype),
        "ones": configuration.ones,
        "options": configuration.options,
        "sizes": sizes,
        "architecture": architecture,
        "shared": kernel.metadata.shared,
        **{name: int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK", "LOCAL")},
    }


def cases() -> Iterator[tuple[int, str, int]]:
    for index, configuration in enumerate(kernels.configurations()):
        yield from itertools.product([index], ["any", "multiples of 16"], ARCHITECTURES)
        if not configuration.ones:
            yield index, "one", ARCHITECTURES[0]


if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for result in pool.map(build, *zip(*cases(), strict=True), chunksize=8):
            print(json.dumps(result), flush=True)
