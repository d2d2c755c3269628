"""Compile the Triton kernels for the cards we name, without having one.

``python tests/helpers/triton_aot.py`` prints one JSON line a kernel. It compiles each kind of kernel for one card, in
turn, and with ``--every-card`` for all. It runs in a process of its own, because Triton compiles nothing under the
interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
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

from bionas_fast.kernels.factorized_reduce import triton as factorized_reduce
from bionas_fast.kernels.feedback import triton as feedback
from bionas_fast.kernels.mixed_sum import triton as mixed_sum
from bionas_fast.kernels.normalisation import triton as normalisation
from bionas_fast.kernels.partial_sums import triton as partial_sums
from bionas_fast.kernels.pooling import triton as pooling
from bionas_fast.kernels.separable_stage import triton as separable_stage

ARCHITECTURES = (80, 90, 100)
#: Divisibility of the whole numbers that a launch is specialised for.
SIZES = ("any", "multiples of 16")
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
#: Arguments that are neither tensors of the configuration's dtype nor whole numbers.
TYPES = (
    dict.fromkeys(("bound", "scale", "momentum"), "fp32")
    | dict.fromkeys(("p_stored", "p_sums", "p_scale", "p_shift", "p_a", "p_b", "p_d", "p_factor", "p_offset"), "*fp32")
    | dict.fromkeys(("p_partial0", "p_partial1", "p_partial2"), "*fp32")
    | dict.fromkeys(("p_mean", "p_var"), "*fp64")
    | dict.fromkeys(("p_programs", "p_firsts"), "*i64")
    | dict.fromkeys(("p_depthwise_grad", "p_pointwise_grad", "p_weight_grad", "p_numbers"), "*fp32")
    | dict.fromkeys(
        (
            "p_segments",
            "p_stream",
            "p_branches",
            "p_places",
            "p_edges",
            "p_terms",
            "p_pairs",
            "p_blocks",
            "p_next",
            "p_steps",
        ),
        "*i64",
    )
)
#: The weights of kernels whose maps may be narrower.
WEIGHTS = dict.fromkeys(("p_depthwise", "p_pointwise", "p_feedback", "p_first", "p_second"), "*fp32")
#: Tensors that only one mode of feedback reads.
UNREAD = {"p_stored": "stored_sign", "p_stream": "drawn_sign"}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
#: Options whose values take turns on the cards.
TURNS = ("STRIDE", "AFFINE", "BLOCK_G")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
OPS = (feedback, separable_stage, mixed_sum, pooling, normalisation, partial_sums, factorized_reduce)
CONFIGURATIONS = [configuration for op in OPS for configuration in op.configurations()]
NARROWING = {own.kernel for op in (separable_stage, factorized_reduce) for own in op.configurations()}


def source(configuration: Any, sizes: str) -> ASTSource:
    """The kernel specialised as a launch does it: ones and unread tensors are constants, 16 may divide the rest."""
    kernel, dtype, ones, options = configuration
    constants: dict[str, Any] = {name: value for name, value in options.items() if name not in OPTIONS}
    constants |= dict.fromkeys(ones, 1)
    constants |= {name: None for name, mode in UNREAD.items() if options.get("MODE", mode) != mode}
    signature, attributes = {}, {}
    types = TYPES | WEIGHTS if kernel in NARROWING else TYPES
    for parameter in kernel.params:
        name = parameter.name
        kind = types.get(name, POINTERS[dtype] if name.startswith("p_") else "i32")
        specialised = kind == "i32" and not parameter.do_not_specialize
        if sizes == "one" and specialised:
            constants.setdefault(name, 1)
        signature[name] = "constexpr" if name in constants else kind
        if signature[name].startswith("*") or (sizes == "multiples of 16" and specialised and name not in constants):
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def build(index: int, sizes: str, architecture: int) -> dict[str, Any]:
    """The resources of the card used by the kernel of configuration ``index``; K of its products [M, K] × [K, N]."""
    configuration = CONFIGURATIONS[index]
    options = {name: value for name, value in configuration.options.items() if name in OPTIONS}
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source(configuration, sizes), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    depths = re.findall(r"tt\.dot .*: tensor<\d+x(\d+)x\w+> \*", kernel.asm["ttir"])
    return {
        "kernel": configuration.kernel.__name__,
        "dtype": str(configuration.dtype),
        "ones": configuration.ones,
        "options": configuration.options,
        "sizes": sizes,
        "architecture": architecture,
        "shared": kernel.metadata.shared,
        "depths": [int(depth) for depth in depths],
        **{name: int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK", "LOCAL")},
    }


def cases(every_card: bool) -> Iterator[tuple[int, str, int]]:
    """Configurations, sizes and cards: each kind once, or on every card; and kernels whose sizes are all 1.

    Cards, sizes and the configurations of a kind take turns along the kinds of a kernel, from another start in each
    mode. Where each kind is compiled once, the first of a kernel has ones.
    """
    kinds: dict[tuple, list[int]] = {}
    for index, configuration in enumerate(CONFIGURATIONS):
        kinds.setdefault(kind(configuration), []).append(index)
    turns: dict[Any, dict[str | None, int]] = {}
    for (kernel, mode, *_, options), indices in kinds.items():
        modes = turns.setdefault(kernel, {})
        is_first, turn = mode not in modes, modes.get(mode, len(modes))
        modes[mode] = turn + 1
        own = ARCHITECTURES[turn % len(ARCHITECTURES)]
        cards = ARCHITECTURES if every_card else (own,)
        if is_first or (every_card and options is not None):
            plain = [index for index in indices if not CONFIGURATIONS[index].ones]
            yield taken(turn, plain), "one", own
            cards = cards if every_card else ()
        for number, card in enumerate(cards, turn):
            yield taken(number, indices), SIZES[number % len(SIZES)], card


def taken(turn: int, indices: list[int]) -> int:
    """The index of this turn, from all parts of the list, and not in step with sizes and cards."""
    return indices[(5 * turn + turn // 4) % len(indices)]


def kind(configuration: Any) -> tuple:
    """What is compiled at least once: of float32 without TF32 all options but :data:`TURNS`."""
    kernel, dtype, _, options = configuration
    exact = dtype == torch.float32 and options.get("PRECISION") != "tf32"
    others = str({name: value for name, value in options.items() if name not in TURNS}) if exact else None
    return kernel, options.get("MODE"), options.get("PRECISION"), dtype, others


if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for result in pool.map(build, *zip(*cases("--every-card" in sys.argv), strict=True), chunksize=8):
            print(json.dumps(result), flush=True)
