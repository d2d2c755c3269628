"""Count the instructions that a half step of the paper's supernet issues in Triton kernels; no GPU is needed.

``python benchmarks/instructions.py`` records the launches of the real code (:mod:`launches`), compiles their kernels
ahead of time, counts the instructions of each loop in the machine code, and multiplies them by the trips of the loops
and the programs of the grid. Divided by the rate at which an H100 issues instructions this is **a bound from a count,
not a speed**: no GPU issues at every cycle, and memory is not considered.

Code for a kernel size or a dilation counts as often as branches have it. All other code outside of loops counts once in
every program, also where it runs on a condition.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import bionas_fast as bf
from bionas_fast.kernels import tables
from bionas_fast.kernels.factorized_reduce import triton as factorized_reduce
from bionas_fast.kernels.feedback import triton as feedback
from bionas_fast.kernels.mixed_sum import triton as mixed_sum
from bionas_fast.kernels.normalisation import triton as normalisation
from bionas_fast.kernels.partial_sums import triton as partial_sums
from bionas_fast.kernels.pooling import triton as pooling
from bionas_fast.kernels.separable_stage import triton as separable_stage
from bionas_fast.kernels.separable_stage.triton_taps import GROUP
from launches import DEVICE, Card, Launch

#: Instructions that an H100 SXM issues in a second: multiprocessors, schedulers of each, clock.
H100 = 132 * 4 * 1.83e9
ARCHITECTURES = (80, 90, 100)
HALVES = ("weights", "alphas")
LAUNCHERS = [feedback, separable_stage, mixed_sum, pooling, normalisation, partial_sums, factorized_reduce]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
OPTIONS = ("num_warps", "num_stages", "maxnreg")

# What is launched


def half_step(half: str, batch: int) -> list[Launch]:
    """Record the launches of a half step; the tables of numbers that kernels read have an attribute ``rows``."""

    def table(numbers: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        made = torch.tensor(numbers, dtype=dtype, device="cpu").to(device)
        made.rows = numbers  # type: ignore[attr-defined]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_table", table)
        card = Card(patch, LAUNCHERS)
        net = bf.build_supernet(channels=16, cells=5, seed=0).to(DEVICE)
        parameters = [*net.weight_parameters()] if half == "weights" else net.alpha_parameters()
        wanted = {id(parameter) for parameter in parameters}
        for parameter in net.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        x, y = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.zeros(batch, dtype=torch.int64, device=DEVICE)
        with card.counted(), bf.precision("ieee"):
            torch.autograd.grad(F.cross_entropy(net(x), y), parameters)
    return card.launched


# What it compiles to


@dataclass
class Part:
    """Instructions from one address to another: all, a loop, or one of several alternatives in a loop."""

    first: int
    last: int
    inside: list[Part] = field(default_factory=list)

    def own(self, counted: list[bool]) -> int:
        """The instructions that are not of a part inside."""
        return sum(counted[self.first : self.last + 1]) - sum(sum(counted[p.first : p.last + 1]) for p in self.inside)


@dataclass
class Machine:
    """The machine code of a kernel: its parts, and which of its instructions count; registers, bytes of stack."""

    whole: Part
    counted: list[bool]
    products: list[bool]
    registers: int
    stack: int

    def parts(self) -> list[Part]:
        """All parts but the whole, each before those inside it, in the order of addresses."""
        return [*_flat(self.whole.inside)]

    def issued(self, trips: list[float]) -> float:
        """The instructions of a warp, for the mean number of times that each part runs when the part around it does."""
        found = self.parts()
        if len(found) != len(trips):
            raise SystemExit(f"expected {len(trips)} loops in the machine code, got {len(found)}")
        each = dict(zip(map(id, found), trips, strict=True))

        def issued(part: Part) -> float:
            return part.own(self.counted) + sum(each[id(one)] * issued(one) for one in part.inside)

        return issued(self.whole)


def _flat(parts: list[Part]) -> list[Part]:
    return [one for part in parts for one in (part, *_flat(part.inside))]


INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\d+ )?\s*([A-Z][A-Z0-9_.]*)(.*);")


def read(text: str, registers: int, stack: int) -> Machine:
    """Find the loops in disassembled code, and the alternatives in loops without loops inside."""
    operations, jumps, labels = [], {}, {}
    for line in text.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(operations)
        elif found := INSTRUCTION.match(line):
            if found[2].startswith("BRA") and (target := re.search(r"`\((\.L_x_\d+)\)", found[3])):
                jumps[len(operations)] = target[1]
            operations.append(found[2])
    loops = [(labels[target], at) for at, target in jumps.items() if labels[target] < at]
    edges = {0, *labels.values(), *(at + 1 for at in jumps)}
    counted = [operation != "NOP" for operation in operations]
    products = [operation.startswith("FFMA") for operation in operations]
    whole = Part(0, len(operations) - 1)
    for first, last in sorted(loops, key=lambda loop: (loop[0], -loop[1])):
        around = whole
        while inner := next((p for p in around.inside if p.first <= first and last <= p.last), None):
            around = inner
        around.inside.append(Part(first, last))
    for part in _flat(whole.inside):
        starts = sorted(edge for edge in edges if part.first <= edge <= part.last)
        blocks = [Part(a, b - 1) for a, b in zip(starts, [*starts[1:], part.last + 1], strict=True)]
        heavy = [block for block in blocks if sum(products[block.first : block.last + 1]) >= 16]
        if not part.inside and len(heavy) > 1:
            part.inside = heavy
    return Machine(whole, counted, products, registers, stack)


def compiled(launch: Launch, architecture: int) -> Machine:
    """Compile the kernel as this launch does."""
    constants = {name: value for name, value in launch.arguments.items() if name.isupper()}
    signature, attributes = {}, {}
    for parameter in launch.kernel.params:
        name = parameter.name
        value = launch.arguments[name]
        specialised = not parameter.do_not_specialize
        if value is None or (isinstance(value, int) and value == 1 and specialised):
            constants[name] = value
        kind = POINTERS[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"
        signature[name] = "constexpr" if name in constants else kind
        aligned = value.storage_offset() * value.itemsize if isinstance(value, Tensor) else value
        if name not in constants and specialised and kind != "fp32" and aligned % 16 == 0:
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    options = {name: value for name, value in launch.arguments.items() if name in OPTIONS}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    return read(text, registers, stack)


def _run(tool: str, *words: str) -> str:
    return subprocess.run([TOOLS / tool, *words], check=True, capture_output=True, text=True).stdout


def variant(launch: Launch) -> tuple[Any, ...]:
    """What decides how a launch is compiled."""
    kinds = []
    for name, value in launch.arguments.items():
        if isinstance(value, Tensor):
            kinds.append((name, value.dtype, value.storage_offset() * value.itemsize % 16 == 0))
        elif name.isupper() or name in OPTIONS or not isinstance(value, int):
            kinds.append((name, str(value)))
        elif not next(p for p in launch.kernel.params if p.name == name).do_not_specialize:
            kinds.append((name, value == 1, value % 16 == 0))
    return (launch.name, *kinds)


# How often the loops run


def _of_branches(launch: Launch) -> list[tuple[int, int]]:
    """Kernel size and dilation of each branch."""
    return [(kernel, dilation) for kernel, dilation, _ in launch.arguments["p_branches"].rows]


def _share(branches: list[tuple[int, int]], kernel: int, dilation: int | None = None) -> float:
    return sum(k == kernel and dilation in (None, d) for k, d in branches) / len(branches)


def _images(launch: Launch, programs: int, width: int) -> float:
    """The images of a program, for ``width`` groups in a row."""
    of = launch.arguments
    return of["images"] * of["out_height"] * width / (of["BLOCK_G"] * programs)


def _columns(width: int) -> int:
    return 2 * -(-width // (2 * GROUP.value))


def _stage(launch: Launch) -> list[float]:
    of, branches = launch.arguments, _of_branches(launch)
    images = _images(launch, launch.grid[0] // of["branches"], _columns(of["out_width"]))
    return [images, -(-of["inputs"] // of["BLOCK_C"]), 3 * _share(branches, 3), 5 * _share(branches, 5)]


def _weight_gradient(launch: Launch) -> list[float]:
    of, branches = launch.arguments, _of_branches(launch)
    images = _images(launch, launch.grid[1], _columns(of["out_width"]))
    products = -(-of["outputs"] // of["BLOCK_O"])
    parts = 5 + products
    of_3, of_5 = _share(branches, 3), _share(branches, 5)
    return [images * 3 * of_3 / parts, images * 5 * of_5 / parts, images * products / parts, 3 * of_3, 5 * of_5]


def _input(launch: Launch) -> list[float]:
    of, branches = launch.arguments, _of_branches(launch)
    width = _columns(of["width"]) if of["STRIDE"] == 1 else of["out_width"]
    kinds = [(k, d) for k in (3, 5) for d in (1, 2)]
    times = [(k if of["STRIDE"] == 1 else 1) * _share(branches, k, d) for k, d in kinds]
    return [_images(launch, launch.grid[0] // of["count"], width), of["shared"], *times]


def _error(launch: Launch) -> list[float]:
    return [-(-launch.arguments["outputs"] // launch.arguments["BLOCK_O"])]


def _mixed_sum(launch: Launch) -> list[float]:
    return [launch.arguments["p_terms"].shape[0] / launch.arguments["edges"]]


def _moments(launch: Launch) -> list[float]:
    of = launch.arguments
    programs = of["p_programs"].rows
    blocks = sum(-(-row[-1] // of["BLOCK_B"]) for row in programs) / len(programs)
    return [blocks, blocks] if of["TRAINING"] else []


def _add_up(launch: Launch) -> list[float]:
    programs = [row[2] for row in launch.arguments["p_blocks"].rows]
    return [sum(n // 4 for n in programs) / len(programs), sum(n % 4 for n in programs) / len(programs)]  # unrolled


def _reduction_error(launch: Launch) -> list[float]:
    of = launch.arguments
    outputs = -(-of["channels"] // 2), of["channels"] // 2
    return [trips for half in outputs for trips in (of["count"], -(-half // of["BLOCK_O"]))]


def _gradients(launch: Launch) -> list[float]:
    of = launch.arguments
    blocks = -(-of["blocks"] // of["BLOCK_B"])
    return [of["p_terms"].shape[0] / launch.grid[0], blocks, blocks]


#: The mean trips of each loop whenever the code around it runs, in the order of addresses.
TRIPS: dict[str, Callable[[Launch], list[float]]] = {
    "stage_kernel": _stage,
    "weight_gradient_kernel": _weight_gradient,
    "input_kernel": _input,
    "error_kernel": _error,
    "mixed_sum_kernel": _mixed_sum,
    "product_sum_kernel": lambda launch: [],
    "pooling_kernel": lambda launch: [9],
    "pooling_backward_kernel": lambda launch: [9, 9],
    "moments_kernel": _moments,
    "gradients_kernel": _gradients,
    "reduction_kernel": lambda launch: [-(-launch.arguments["channels"] // launch.arguments["BLOCK_C"])],
    "reduction_error_kernel": _reduction_error,
    "reduction_weight_kernel": lambda launch: [
        launch.arguments["rows"] / (launch.arguments["BLOCK_R"] * launch.grid[1])
    ],
    "add_up_kernel": _add_up,
    "segments_kernel": lambda launch: [],
}


# The report


def report(half: str, batch: int, architecture: int) -> None:
    """Print a line for each kernel, and their sum."""
    launches = half_step(half, batch)
    machines: dict[tuple[Any, ...], Machine] = {}
    issued: dict[str, float] = defaultdict(float)
    number: dict[str, int] = defaultdict(int)
    used: dict[str, list[Machine]] = defaultdict(list)
    for launch in launches:
        key = variant(launch)
        if key not in machines:
            machines[key] = compiled(launch, architecture)
            used[launch.name].append(machines[key])
        programs = 1
        for size in launch.grid:
            programs *= size
        try:
            each = machines[key].issued(TRIPS[launch.name](launch))
        except SystemExit as error:
            raise SystemExit(f"{launch.name}: {error}") from None
        issued[launch.name] += programs * launch.arguments["num_warps"] * each
        number[launch.name] += 1
    print(f"half a step of {half}, batch size {batch}, sm_{architecture}")
    print(f"{'kernel':24}{'launches':>9}{'instructions':>14}{'bound':>10}{'registers':>11}{'stack':>7}")
    for name in sorted(issued, key=lambda name: -issued[name]):
        registers, stack = (max(getattr(m, what) for m in used[name]) for what in ("registers", "stack"))
        bound = f"{1e3 * issued[name] / H100:7.2f} ms" if architecture == 90 else ""
        print(f"{name:24}{number[name]:9}{issued[name]:14.3e}{bound:>10}{registers:11}{stack:7}")
    total = sum(issued.values())
    bound = f"{1e3 * total / H100:7.2f} ms" if architecture == 90 else ""
    print(f"{'total':24}{sum(number.values()):9}{total:14.3e}{bound:>10}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, nargs="+", default=HALVES)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--architecture", type=int, choices=ARCHITECTURES, nargs="+", default=[90])
    options = parser.parse_args()
    for architecture in options.architecture:
        for half in options.half:
            report(half, options.batch, architecture)
    print("Bounds follow from a count of instructions and the issue rate of an H100. They are not speeds.")


if __name__ == "__main__":
    main()
