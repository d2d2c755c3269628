"""Calls of the compiled operators with arguments that do not fit, as a program: none may crash, hang or take memory.

    python mismatched_calls.py SEED COUNT PROGRESS [LIBRARY]

A call is a valid one, of :func:`samples`, of which up to three arguments are changed at random; the operators come from
the library's registry, and one without a sample is called with arguments made from its schema. The number of the
current call is kept in the file PROGRESS, for whoever finds this process dead. LIBRARY replaces the package's own one.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "bionas_fast_native"
#: Seconds that no call of these sizes may take, under a sanitizer either.
PATIENCE = 10.0
#: Bytes of address space that all calls together may add.
MEMORY = 6 << 30
EXTREMES = (
    -(2**63),
    -(2**62),
    -(2**31),
    -7,
    -1,
    0,
    1,
    2,
    3,
    5,
    7,
    16,
    63,
    65,
    2**16,
    2**31,
    2**32 + 1,
    2**62,
    2**63 - 1,
)
DTYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.bool,
    torch.complex64,
    torch.uint8,
)
WORDS = ("", "sign", "stored_sign", "drawn_sign", "custom", "direct", "soft", "hard", "lower", "max", "\0", "é" * 50)


def samples() -> dict[str, list[tuple[Any, ...]]]:
    """Make a valid call or several of every operator: small, odd sizes, fewer channels in weights than in maps."""
    n, h, w, c, own = 2, 5, 4, 16, 12

    def maps(*lead: int, height: int = h, width: int = w) -> Tensor:
        return torch.randn(*lead, n, height, width, c)

    def rows(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(count, c, dtype=dtype) + 0.5

    def weights(kernels: list[int]) -> list[Tensor]:
        return [torch.randn(own * sum(k * k for k in kernels)), torch.randn(len(kernels), own, own)]

    kernels, dilations = [3, 5, 3], [1, 2, 1]
    k = len(kernels)
    x, stage = maps(), [1, *kernels, *dilations]
    halved = [2, *kernels, *dilations]
    affine = [rows(k), rows(k)]
    small = {"height": 3, "width": 2}
    plan = [2, 1, 0, 1, 1, 1, *kernels, *dilations]
    both = [*weights(kernels), *weights(kernels[:1])]
    moments = [rows(1 + k, torch.float64), rows(1 + k, torch.float64)]
    mixing = torch.rand(k, dtype=torch.float64)
    terms = [2, 0, 2, 1, 3, 0, 1, 1, 0]
    stacks = [maps(3), maps(1)]
    factors, sums = torch.rand(4, dtype=torch.float64), [rows(2, torch.float64), rows(2, torch.float64) + 50]
    halves = [torch.randn(2, own - own // 2, own), torch.randn(2, own // 2, own)]
    image, shaped = torch.randn(n, 6, h, w), torch.randn(n, 6, h, w)
    chain = [torch.randn(6, 1, 3, 3), torch.randn(6, 6, 1, 1), torch.randn(6, 1, 5, 5), torch.randn(6, 6, 1, 1)]
    chains = [*chain, torch.randn(6, 6, 1, 1)]
    steps, vectors = [2, 1, 3, 2, 5, 1, 0, 1], [torch.rand(6) for _ in range(6)]
    running = [t for _ in range(3) for t in (torch.randn(6), torch.rand(6), torch.tensor(0))]
    planar = [torch.randn(3, 6, dtype=torch.float64), torch.rand(3, 6, dtype=torch.float64)]
    few, keep = [1e-5] * 3, torch.rand(2, n)
    u, filters = torch.randn(2, 6, 20), torch.randn(6, 3, 3, 3)
    weight, stream = torch.randn(40), torch.tensor([5, 1])
    segments, magnitudes = torch.tensor([[10, 0], [30, 1]]), torch.ones(2, 2, dtype=torch.float64)
    ops = getattr(torch.ops, NAMESPACE)
    modes = list(ops.feedback_modes())
    segments[:, 1] = torch.tensor([modes.index("sign"), modes.index("drawn_sign")])
    return {
        "feedback_weight": [
            (torch.randn(4, 3, 3, 3), "sign", None, None, 0.5, 0.3),
            (weight, "stored_sign", weight.abs(), None, 0.5, 0.3),
            (weight, "drawn_sign", None, stream, 0.5, 0.3),
        ],
        "feedback_segments": [(weight, weight.abs(), torch.tensor([[1, 0], [2, 3]]), segments, magnitudes)],
        "uniform": [([3, 4], stream)],
        "stage_forward": [
            (x, weights(kernels), stage, []),
            (x, weights(kernels), halved, affine),
            (maps(k), weights(kernels), stage, affine),
        ],
        "stage_backward": [
            (
                [maps()] * k, [maps(k), rows(k), rows(k), rows(k)],
                x, weights(kernels), weights(kernels), stage, [], True,
            ),
            (
                [maps(**small)] * k, [maps(k, **small), rows(k), rows(k), rows(k)],
                x, weights(kernels), weights(kernels), halved, affine, True,
            ),
        ],
        "separable_edges": [
            (x, both, plan, mixing, [], [None, maps()]), (x, both, plan, mixing, moments, [None, None])
        ],
        "separable_edges_backward": [
            ([maps(), maps()], [x, maps(k), *moments], both, both, plan, mixing, True, True),
            ([maps(), maps()], [x, maps(k), *moments], both, [], plan, mixing, False, False),
        ],
        "mixed_sum": [(stacks, terms, rows(4), rows(2), [None, maps()])],
        "augment": [
            (
                torch.randint(256, (7, 2, 5, 4), dtype=torch.uint8), torch.tensor([6, 0, 3]),
                torch.randint(-3, 4, (3, 5)), 2, torch.rand(2, 256),
            )
        ],
        "mixed_sum_backward": [([maps(), maps()], stacks, terms)],
        "normalised_sum": [
            (stacks, terms, factors, sums, [], [None, maps()]), (stacks, terms, factors, sums, sums, [None, None])
        ],
        "normalised_sum_backward": [([maps(), maps()], stacks, terms, factors, sums, True)],
        "pooling": [(x, 1), (x, 2)],
        "pooling_backward": [([maps(**small), maps(**small)], x, 2)],
        "factorized_reduce": [(x, halves)],
        "factorized_reduce_backward": [
            ([maps(**small)] * 2, [maps(2, **small), rows(2), rows(2), rows(2)], x, halves, halves, True)
        ],
        "feedback_weights": [
            ([weight, weight], ["sign", "drawn_sign"], [None, None], [None, stream], [0.5, 0.5], [0.3, 0.3])
        ],
        "planar_edges": [
            (image, chains, vectors, running, steps, few, few, [None, shaped], keep, True),
            (image, chains, vectors, running, steps, few, few, [None, None], torch.empty(0), False),
        ],
        "planar_edges_backward": [
            ([shaped] * 2, image, [shaped] * 3, planar, chains, chains, vectors, steps, few, keep, True, True)
        ],
        "planar_pool": [(image, 1), (image, 2)],
        "planar_pool_backward": [(shaped, image, 1)],
        "hebbian_activity": [
            (u, None, None, "soft", "activity", 1.0, 2), (u, u, torch.rand(2, 2, 20), "linear", "none", 1.0, 2)
        ],
        "hebbian_move": [
            (filters, torch.randn(6, 3, 3, 3), torch.rand(6, dtype=torch.float64), torch.rand(6), 40.0, "max", 2)
        ],
        "weight_gradient": [(torch.randn(2, 33, 5, 6), torch.randn(2, 32, 5, 6), [1, 1])],
    }  # fmt: skip


def operators() -> list[str]:
    """List the operators of the library that take arguments, from its registry."""
    found = []
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace == NAMESPACE and schema.arguments and schema.overload_name == "":
            found.append(name)
    return sorted(set(found) - {"set_isa"})


def from_schema(name: str, chance: random.Random) -> tuple[Any, ...]:
    """Make arguments of the types of an operator's schema."""
    made: list[Any] = []
    for argument in getattr(getattr(torch.ops, NAMESPACE), name).default._schema.arguments:
        kind = str(argument.type)
        tensor = torch.randn([chance.randint(0, 4) for _ in range(chance.randint(0, 5))])
        values: dict[str, Any] = {
            "Tensor": tensor, "Optional[Tensor]": chance.choice([None, tensor]), "List[Tensor]": [tensor],
            "List[Optional[Tensor]]": [None, tensor], "int": chance.randint(-2, 5), "float": chance.random(),
            "bool": chance.random() < 0.5, "str": chance.choice(WORDS), "List[int]": [chance.randint(-2, 5)] * 3,
            "List[float]": [chance.random()] * 2, "List[str]": [chance.choice(WORDS)] * 2,
        }  # fmt: skip
        made.append(values[kind])
    return tuple(made)


def changed(value: Any, chance: random.Random) -> Any:
    """Change an argument to one that probably does not fit."""
    if isinstance(value, Tensor):
        return changed_tensor(value, chance)
    if isinstance(value, (list, tuple)):
        entries = list(value)
        where = chance.randrange(len(entries)) if entries else 0
        match chance.randrange(6):
            case 0:
                return []
            case 1:
                return entries[:where]
            case 2:
                return entries + entries[: where + 1]
            case 3:
                return entries[::-1]
        return entries[:where] + [changed(entry, chance) for entry in entries[where : where + 1]] + entries[where + 1 :]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([*EXTREMES, value + 1, value - 1, -value])
    if isinstance(value, float):
        return chance.choice([0.0, -1.0, 1e300, -1e300, float("nan"), float("inf"), float("-inf")])
    if isinstance(value, str):
        return chance.choice(WORDS)
    return chance.choice([None, torch.randn(3), torch.randn(2, 5, 4, 16), torch.tensor([1, 2])])


def changed_tensor(tensor: Tensor, chance: random.Random) -> Tensor:
    """Change size, dtype, device, density or numbers of a tensor."""
    shape = list(tensor.shape)
    dim = chance.randrange(len(shape)) if shape else 0

    def resized(new: list[int]) -> Tensor:
        return torch.zeros(new).to(tensor.dtype) if tensor.dtype != torch.int64 else torch.ones(new, dtype=torch.int64)

    match chance.randrange(12) if shape else chance.randrange(3):
        case 0:
            return tensor.to(chance.choice(DTYPES))
        case 1:
            return torch.empty_like(tensor, device="meta")
        case 2:
            return resized([])
        case 3:
            return resized([*shape[:dim], chance.choice([0, 1, 2, 3, 15, 17, 32, shape[dim] + 1]), *shape[dim + 1 :]])
        case 4:
            return resized([*shape[:dim], chance.choice([2**20, 2**31, 2**40]), *shape[dim + 1 :], 0])
        case 5:
            return resized([0 if i == dim else size for i, size in enumerate(shape)])
        case 6:
            return tensor.unsqueeze(dim) if chance.random() < 0.5 else tensor.flatten()
        case 7:
            return tensor.transpose(0, -1)
        case 8:  # with gaps
            return torch.cat([tensor, tensor], dim)[(slice(None),) * dim + (slice(None, None, 2),)]
        case 9:
            return tensor.narrow(dim, 0, min(1, shape[dim])).expand(shape)
        case 10 if tensor.numel() and not tensor.is_meta:
            other = tensor.contiguous().clone()
            flat = other.view(-1)
            place = chance.randrange(len(flat))
            if tensor.dtype == torch.int64:
                flat[place] = chance.choice(EXTREMES)
            elif tensor.dtype.is_floating_point:
                flat[place] = chance.choice([float("nan"), float("inf"), 1e38, 0.0])
            return other
    return resized(shape[: chance.randrange(len(shape) + 1)] if shape else [1])


def run(seed: int, count: int, progress: Callable[[int], None]) -> dict[str, int]:
    """Run ``count`` mismatched calls; return how many raised, and how many ran since they fitted after all."""
    names, valid = operators(), samples()
    kernels = getattr(torch.ops, NAMESPACE)
    for name, calls in valid.items():
        for arguments in calls:
            getattr(kernels, name)(*arguments)
    outcomes = {"raised": 0, "ran": 0}
    for number in range(count):
        progress(number)
        chance = random.Random(f"{seed} {number}")
        torch.manual_seed(number)
        name = chance.choice(names)
        calls = valid.get(name, [])
        arguments = list(chance.choice(calls) if calls and chance.random() < 0.95 else from_schema(name, chance))
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            place = chance.randrange(len(arguments))
            with contextlib.suppress(RuntimeError):  # a tensor of two changes may be impossible
                arguments[place] = changed(arguments[place], chance)
        if name == "hebbian_move":  # it writes into its arguments
            arguments = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
        started = time.monotonic()
        try:
            getattr(kernels, name)(*arguments)
            outcomes["ran"] += 1
        except Exception:  # which one, named cases say
            outcomes["raised"] += 1
        if time.monotonic() - started > PATIENCE:
            raise SystemExit(f"call {number} of seed {seed}, {name}, took {time.monotonic() - started:.0f} s")
    return outcomes


def main() -> None:
    seed, count, progress, *library = sys.argv[1:]
    if library:
        torch.ops.load_library(library[0])
    else:
        from bionas_fast import native

        if not native.load():
            raise SystemExit(f"no compiled kernels: {native.status().reason}")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    torch.set_num_threads(1)
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as page:

        def note(number: int) -> None:
            page[:] = struct.pack("q", number)

        print(run(int(seed), int(count), note))


if __name__ == "__main__":
    main()
