"""How times and memory are taken."""

from __future__ import annotations

import ctypes
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

import bionas_fast as bf

Step = Callable[[], object]


@dataclass
class Report:
    """The lines printed after all benchmarks."""

    lines: list[str] = field(default_factory=list)

    def add(self, what: str, text: str) -> None:
        self.lines.append(f"{what:58} {text}")

    def ratios(self, what: str, times: Mapping[str, float], base: str, target: str = "") -> None:
        """How many times faster than ``base`` each other variant is."""
        for name, seconds in times.items():
            if name == base:
                continue
            ratio = f"{times[base] / seconds:6.2f} times as fast as {base}"
            self.add(
                f"{what}, {name}", f"{ratio} ({1e3 * seconds:.1f} ms, {1e3 * times[base]:.1f} ms) {target}".rstrip()
            )


def interleaved(variants: Mapping[str, Step], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each variant, timed in turns; a first turn is dropped."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, step in variants.items():
            synchronise()
            start = time.perf_counter()
            step()
            synchronise()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Timing(NamedTuple):
    """Times of a step.

    Attributes:
        median, lowest: milliseconds.
        repeats: the number of times.
        first: seconds of the first call, which compiles kernels.
        peak: GiB that PyTorch's allocator gave out at most, 0 on the CPU.
    """

    median: float
    lowest: float
    repeats: int
    first: float
    peak: float


#: Bytes written between repeats, more than the last cache of any GPU or processor holds.
FLUSHED = 2**28


def timed(step: Step, device: str, seconds: float, repeats: int = 20) -> Timing:
    """Time a step by CUDA events, or by the clock on the CPU; the caches are flushed between repeats.

    The host waits only at the end: a step that the host cannot launch as fast as the device runs it takes as long as
    its launches.

    Args:
        seconds: the number of repeats is lowered to fit into this time, but not below 3.
    """
    synchronise()
    if cuda := torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    step()
    synchronise()
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    step()
    synchronise()
    once = time.perf_counter() - begun
    repeats = max(min(3, repeats), min(repeats, int(seconds / max(once, 1e-6))))
    flushed = torch.empty(FLUSHED if cuda else 0, dtype=torch.uint8, device=device)
    taken: list[float] = []
    pairs = []
    for _ in range(repeats):
        flushed.zero_()
        if cuda:
            pairs.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            pairs[-1][0].record()
            step()
            pairs[-1][1].record()
        else:
            begun = time.perf_counter()
            step()
            taken.append(1e3 * (time.perf_counter() - begun))
    synchronise()
    taken += [start.elapsed_time(end) for start, end in pairs]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return Timing(statistics.median(taken), min(taken), repeats, first, peak)


def show(benchmark, step: Step, seconds: float) -> None:
    """Put a variant into the table of pytest-benchmark as well, with about a second of rounds."""

    def run() -> None:
        step()
        synchronise()

    benchmark.pedantic(run, rounds=max(1, min(20, int(1 / max(seconds, 1e-6)))), warmup_rounds=1)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error over the largest entry."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def matmul_peak(device: str) -> tuple[Step, float]:
    """A square matrix product in float32, and how many operations it takes."""
    size = 1024 if device == "cpu" else 8192  # a small one would measure the launches of a GPU
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)

    def step() -> None:
        for _ in range(4):
            a @ b

    return step, 4 * 2.0 * size**3


class SearchStep:
    """One step of a search in two halves: of the weights, and of the architecture."""

    def __init__(self, engine: str, batch: int, size: int, device: str, compiled: bool = False, **settings) -> None:
        self.amp: torch.dtype | None = None  # of autocast
        self.net = bf.build_supernet(engine=engine, **settings).to(device)
        self.run = self.net
        if compiled:
            compile_edges(self.net)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 3, size, size, generator=generator).to(device)
        self.y = torch.randint(10, (batch,), generator=generator).to(device)

    def loss(self) -> torch.Tensor:
        with torch.autocast(self.x.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            return torch.nn.functional.cross_entropy(self.run(self.x), self.y)

    def forward(self) -> None:
        with torch.no_grad():
            self.run(self.x)

    def weights(self) -> None:
        self._only(self.net.weight_parameters())
        self.loss().backward()
        for parameter in self.net.parameters():
            parameter.grad = None

    def architecture(self) -> tuple[torch.Tensor, ...]:
        self._only(self.net.alpha_parameters())
        return torch.autograd.grad(self.loss(), self.net.alpha_parameters())

    def both(self) -> None:
        self.architecture()
        self.weights()

    def _only(self, wanted) -> None:
        chosen = {id(parameter) for parameter in wanted}
        for parameter in self.net.parameters():
            parameter.requires_grad_(id(parameter) in chosen)


def compile_edges(net: torch.nn.Module) -> None:
    """Every mixed op by itself: those of one shape share their code, so this takes minutes. The whole supernet as one
    graph was still compiling after forty."""
    # One variant for each shape, and for which parameters want gradients.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # what runs uncompiled would be timed as compiled
    for cell in net.cells:
        for edge in cell.edges:
            edge.compile(dynamic=False)


def useful_operations(net: torch.nn.Module, x: torch.Tensor) -> float:
    """Multiplications and additions of all convolutions in one forward pass of a network of modules."""
    total = 0.0

    def count(module, inputs, output) -> None:
        nonlocal total
        total += 2.0 * output.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, bf.nn.Conv2d)]
    with torch.no_grad():
        net(x[:1])
    for hook in hooks:
        hook.remove()
    return total * len(x)


def highest() -> float:
    """MiB that this process has had in memory at most; unlike ``ru_maxrss`` not inherited from its parent."""
    with open("/proc/self/status") as status:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read())[0]) / 1024


def forget_highest() -> None:
    """From now on :func:`highest` starts again from the memory in use."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory(statement: str, setup: str = "") -> float:
    """MiB that a fresh process needs at most for a statement, above what importing and the set-up take."""
    program = f"""
from bionas_fast import native
native.load()
from measuring import SearchStep, highest
{setup}
before = highest()
{statement}
print(highest() - before)
"""
    return float(printed(program))


def printed(program: str, **environment: str) -> str:
    """What a fresh process prints that runs a program here."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.path.dirname(__file__),
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
