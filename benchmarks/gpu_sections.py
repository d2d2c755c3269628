"""The sections of gpu_day.py: each yields rows, after a check of the results that it times."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import bionas_fast as bf
import test_feedback_layers
import test_hebbian
from bionas_fast import backends, native
from bionas_fast.data import Augment, BatchStream
from bionas_fast.functional import hebbian_update
from bionas_fast.runtime import graphs
from bionas_fast.runtime.machine import machine as described
from bionas_fast.space import get_space
from bionas_fast.space.publications import published
from bionas_fast.supernet.stacked import StackedSupernet
from bionas_fast.verification import verify
from measuring import SearchStep, Step, Timing, relative, synchronise, timed

Row = dict[str, Any]

#: The sections in their order, with their share of the time.
SHARES = {
    "machine": 5,
    "libraries": 60,
    "doctor": 100,
    "card_tests": 75,
    "search_steps": 90,
    "launches": 25,
    "graph_steps": 20,
    "compiled": 30,
    "training": 30,
    "layers": 20,
    "hebbian": 15,
    "loader": 15,
    "several_cards": 15,
}
#: Precisions of float32 numbers, and autocast.
PRECISIONS = ("float32", "tf32", "bf16")
ROOT = Path(__file__).resolve().parents[1]
#: Imported before the sections' processes fork, which inherit it.
PRELOADED = [bf.build_network, bf.build_supernet, bf.convert, bf.precision, bf.to_torch]


@dataclass(frozen=True)
class Day:
    """What the sections are told.

    Attributes:
        device: ``cpu`` or ``cuda``.
        tiny: whether to try the program with tiny sizes.
        end: the end of the section's time, by ``time.monotonic``.
    """

    device: str
    tiny: bool
    end: float

    def left(self) -> float:
        """Seconds until the section's end."""
        return self.end - time.monotonic()

    def timed(self, step: Step, precision: str = "float32") -> Row:
        """Time a step in a precision; a row."""
        with bf.precision("tf32" if precision == "tf32" else "ieee"):
            found = timed(step, self.device, min(2.0, max(0.3, self.left() / 20)), 1 if self.tiny else 20)
        return as_row(found)


def as_row(found: Timing) -> Row:
    return {
        "ms": found.median,
        "lowest ms": found.lowest,
        "repeats": found.repeats,
        "first s": found.first,
        "peak GiB": found.peak,
    }


def machine(day: Day) -> Iterator[Row]:
    """The machine, its cards, and the versions."""
    for key, value in described().items():
        yield {"what": key, "value": value}
    yield {"what": "python", "value": platform.python_version()}
    yield {"what": "CUDA of torch", "value": str(torch.version.cuda)}
    yield {"what": "cuDNN", "value": str(torch.backends.cudnn.version())}
    if day.device != "cuda":
        return
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device")
    for index in range(torch.cuda.device_count()):
        own = torch.cuda.get_device_properties(index)
        text = f"{own.name}, sm_{own.major}{own.minor}, {own.multi_processor_count} multiprocessors, "
        yield {"what": f"card {index}", "value": f"{text}{own.total_memory / 2**30:.0f} GiB"}
    fields = "name,driver_version,clocks.sm,clocks.max.sm,power.limit,compute_mode"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            yield {"what": f"nvidia-smi: {fields}", "value": line}


def libraries(day: Day) -> Iterator[Row]:
    """The compiled kernels, and Triton: whether they can be had, and how long that takes."""
    kinds = {"CPU": native.status, "CUDA": native.cuda_status}
    for name, status in kinds.items():
        begun = time.monotonic()
        found = status()
        missing = not found.available and (name == "CPU" or day.device == "cuda")
        row = {"library": name, "seconds": time.monotonic() - begun, "path": str(found.path), "reason": found.reason}
        yield row | {"status": "failed" if missing else "ok"}
    begun = time.monotonic()
    reason = backends.triton_obstacle(day.device)
    row = {"library": "Triton", "seconds": time.monotonic() - begun, "path": "", "reason": reason}
    yield row | {"status": "failed" if reason and day.device == "cuda" else "ok"}


def doctor(day: Day) -> Iterator[Row]:
    """Every kernel against its reference; a row for each failure, and one for each kernel."""
    outcomes = []
    for outcome in verify(3 if day.tiny else day.left() - 3):
        outcomes.append(outcome)
        if outcome.status == "failed":
            about = (outcome.kernel, outcome.backend, outcome.device, outcome.dtype, outcome.shape, outcome.mode)
            yield {"kernel": ", ".join(filter(None, about)), "status": "failed", "reason": outcome.reason}
    for key in dict.fromkeys((one.kernel, one.backend, one.device, one.dtype, one.mode) for one in outcomes):
        own = [one for one in outcomes if (one.kernel, one.backend, one.device, one.dtype, one.mode) == key]
        done = [one for one in own if one.status == "ok"]
        counts = Counter(one.status for one in own)
        row: Row = {"kernel": ", ".join(filter(None, key)), "status": ", ".join(f"{n} {s}" for s, n in counts.items())}
        row["reason"] = next((one.reason for one in own if one.status == "skipped"), "")
        if done:
            worst = max(done, key=lambda one: one.error / max(one.bound, 1e-300))
            row |= {"error": worst.error, "bound": worst.bound}
        yield row | {"all": [one._asdict() for one in own]}


def card_tests(day: Day) -> Iterator[Row]:
    """The tests that only a card can run; on the CPU, a few others."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "-rN"]
    if day.device == "cuda":
        command += ["--device", "cuda", "tests/test_on_a_card.py", "tests/native/test_cuda_build.py", "tests/kernels"]
        command += ["-n", "4"] if importlib.util.find_spec("xdist") else []
        command += ["-k", "on_a_card or gpu"]
    else:
        command += ["tests/kernels/test_tables.py"]
    counts: Counter[str] = Counter()
    said: list[str] = []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line.rstrip())
        found = re.search(r"(\S+::\S+.*?) (PASSED|FAILED|ERROR|SKIPPED)|(PASSED|FAILED|ERROR|SKIPPED) (\S+::.*)", line)
        if found:
            name, result = (found[1], found[2]) if found[1] else (found[4].strip(), found[3])
            counts[result] += 1
            if result in ("FAILED", "ERROR"):
                yield {"test": name, "status": "failed"}
    process.wait()
    text = ", ".join(f"{number} {result.lower()}" for result, number in counts.items())
    status = "ok" if process.returncode == 0 else "failed"
    yield {"test": " ".join(command[1:]), "status": status, "result": text, "all": said[-4000:]}
    if status == "failed":
        yield {"test": "the end of the output", "status": "failed", "result": "\n".join(said[-60:])}


def _supernet(day: Day) -> dict[str, Any]:
    """Settings of the paper's supernet."""
    if not day.tiny:
        return {"channels": 16, "cells": 5}
    space = get_space("bionas").restricted(("brsf",), ("dil_conv_3x3", "skip_connect"))
    return {"channels": 2, "cells": 3, "space": space}


def _half(step: SearchStep, which: str, precision: str) -> Step:
    def run() -> None:
        step.amp = torch.bfloat16 if precision == "bf16" else None
        getattr(step, which)()

    return run


def _check_engines(day: Day, precision: str) -> Row:
    """Compare both engines with float64: the stacked one may err up to three times as much as the modular one."""
    size = {"batch": 3, "size": 8} if day.tiny else {"batch": 8, "size": 32}
    fast, slow = (SearchStep(engine, device=day.device, **size, **_supernet(day)) for engine in ("stacked", "modular"))
    assert isinstance(fast.net, StackedSupernet)
    fast.net.load_modular(slow.net)
    exact = copy.copy(slow)
    exact.net = exact.run = copy.deepcopy(slow.net).double()
    exact.x = slow.x.double()
    found = []
    for step in (fast, slow, exact):
        step.amp = torch.bfloat16 if precision == "bf16" and step is not exact else None
        with bf.precision("tf32" if precision == "tf32" else "ieee"):
            found.append(torch.cat([grad.flatten() for grad in step.architecture()]).double())
    ours, theirs, right = found
    errors = [float((own - right).norm() / right.norm()) for own in (ours, theirs)]
    row: Row = {"engine": "both", "precision": precision, "error of stacked": errors[0], "of modular": errors[1]}
    least = {"float32": 1e-5, "tf32": 1e-3, "bf16": 1e-2}[precision]  # where the modular engine is right by chance
    return row | {"status": "ok" if errors[0] <= 3 * errors[1] + least else "failed"}


def search_steps(day: Day) -> Iterator[Row]:
    """Half steps of a search: of the weights and of alpha, in both engines."""
    for precision in PRECISIONS:
        yield _check_engines(day, precision)
    size = 8 if day.tiny else 32
    for batch in (2,) if day.tiny else (64, 256):
        for engine in ("stacked", "modular"):
            step = SearchStep(engine, batch, size, day.device, **_supernet(day))
            for precision in PRECISIONS:
                for half in ("weights", "architecture"):
                    row: Row = {"engine": engine, "batch": batch, "half": half, "precision": precision}
                    try:
                        yield row | day.timed(_half(step, half, precision), precision)
                    except torch.OutOfMemoryError as error:
                        yield row | {"reason": f"out of memory: {error}"[:200]}
            del step
            if day.device == "cuda":
                torch.cuda.empty_cache()


def launches(day: Day) -> Iterator[Row]:
    """Launches, synchronising calls and the idle share of the device, by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    batch, size = (2, 8) if day.tiny else (64, 32)
    for engine in ("stacked",) if day.tiny else ("stacked", "modular"):
        step = SearchStep(engine, batch, size, day.device, **_supernet(day))
        for half in ("weights", "architecture"):
            run = _half(step, half, "float32")
            taken = day.timed(run)["ms"]
            row: Row = {"engine": engine, "batch": batch, "half": half, "ms": taken}
            if day.device == "cuda":
                row |= {"waits": _waits(run)}
            with profile(activities=[ProfilerActivity.CUDA if day.device == "cuda" else ProfilerActivity.CPU]) as prof:
                run()
                synchronise()
            events = [one for one in prof.events() if one.device_type == torch.autograd.DeviceType.CUDA]
            busy = sum(one.device_time for one in events) / 1e3
            copies = sum("Memcpy" in one.name or "Memset" in one.name for one in events)
            row |= {"kernels": len(events) - copies, "copies and fills": copies, "busy ms": busy}
            total: Counter[str] = Counter()
            for one in events:
                total[one.name[:80]] += one.device_time / 1e3
            longest = {name: round(value, 3) for name, value in total.most_common(25)}
            yield row | {"idle share": max(0.0, 1 - busy / taken) if events else "", "all": longest}


def _waits(run: Step) -> int:
    """Count the calls of a step that wait for the device."""
    synchronise()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def graph_steps(day: Day) -> Iterator[Row]:
    """Half steps of the stacked supernet as replayed CUDA graphs, next to eager ones."""
    if day.device != "cuda":
        yield {"what": "CUDA graphs", "status": "skipped", "reason": "not on a CUDA device"}
        return
    size = 8 if day.tiny else 32
    for batch in (2,) if day.tiny else (16, 64, 256):
        step = SearchStep("stacked", batch, size, day.device, **_supernet(day))
        for half in ("architecture", "weights"):
            row: Row = {"batch": batch, "half": half, "precision": "float32"}
            yield {"how": "eager"} | row | day.timed(getattr(step, half))
            state = copy.deepcopy(step.net.state_dict())  # with the draws of random feedback
            with bf.precision("ieee"):
                right = getattr(step, half)() or ()
                step.net.load_state_dict(state)
                recorded = graphs.record(lambda _, step=step, half=half: getattr(step, half)() or (), [step.x])
            recorded.replay()
            for own, value in zip(recorded.outputs, right, strict=True):
                error = relative(own, value)
                assert error < 1e-3, error
            yield {"how": "CUDA graph"} | row | day.timed(recorded.replay)


def compiled(day: Day) -> Iterator[Row]:
    """Both passes of the stacked supernet as one graph of ``torch.compile``, next to themselves."""
    size = 8 if day.tiny else 32
    for cells, batch in ((1, 2),) if day.tiny else ((3, 64), (5, 64), (5, 256)):
        plain = SearchStep("stacked", batch, size, day.device, **(_supernet(day) | {"cells": cells}))
        other = copy.copy(plain)
        other.run = torch.compile(plain.net, fullgraph=True, backend="eager" if day.tiny else "inductor")
        state = copy.deepcopy(plain.net.state_dict())  # with the draws of random feedback
        with bf.precision("ieee"):
            right = _gradients(plain)
            plain.net.load_state_dict(state)
            begun = time.monotonic()
            ours = _gradients(other)
            synchronise()
        seconds = time.monotonic() - begun
        error = max(relative(own, value) for own, value in zip(ours, right, strict=True) if value.any())
        assert error < 1e-3, error
        for name, step in (("stacked", plain), ("stacked, compiled", other)):
            row: Row = {"engine": name, "cells": cells, "batch": batch, "half": "weights and alpha at once"}
            yield row | {"seconds to compile": seconds} | day.timed(functools.partial(_gradients, step))


def _gradients(step: SearchStep) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(step.loss(), [*step.net.parameters()], allow_unused=True, materialize_grads=True)


def training(day: Day) -> Iterator[Row]:
    """Steps of training a published genotype: its rules, ``bp`` in the same layers, and torch.nn's layers."""
    channels, cells, batches, size = (4, 3, (2,), 8) if day.tiny else (36, 20, (96, 256), 32)
    genotype = published("biodarts2").genotype
    nets = {
        name: bf.build_network(own, channels=channels, cells=cells).to(day.device)
        for name, own in (("rules", genotype), ("bp", genotype.with_rule("bp")))
    }
    nets["torch.nn"] = bf.to_torch(copy.deepcopy(nets["bp"]))
    x, y = torch.randn(2, 3, size, size, device=day.device), torch.arange(2, device=day.device)
    with torch.no_grad(), bf.precision("ieee"):
        right, ours = (nets[name].eval()(x) for name in ("torch.nn", "bp"))
    assert relative(ours, right) < 1e-3
    for batch in batches:
        x = torch.randn(batch, 3, size, size, device=day.device)
        y = torch.arange(batch, device=day.device) % 10
        for precision in PRECISIONS:
            for name, net in nets.items():
                row: Row = {"network": name, "batch": batch, "precision": precision}
                found = day.timed(_training_step(net.train(), x, y, precision), precision)
                yield row | {"images/s": 1e3 * batch / found["ms"]} | found


def _training_step(net: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str) -> Step:
    """A step of SGD with so small a rate that the network stays what it is."""
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-9, momentum=0.9, weight_decay=3e-4)

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()

    return run


def layers(day: Day) -> Iterator[Row]:
    """Training steps of ResNet-20, converted, next to torch.nn."""
    batches, size = ((2,), 8) if day.tiny else ((128, 512), 32)
    torch.manual_seed(0)
    plain = test_feedback_layers.resnet20().to(day.device)
    rules = test_feedback_layers.RULES[2:4] if day.tiny else test_feedback_layers.RULES
    nets = {"torch.nn": plain} | {rule: bf.convert(copy.deepcopy(plain), rule=rule) for rule in rules}
    x = torch.randn(4, 3, size, size, device=day.device)
    with torch.no_grad(), bf.precision("ieee"):
        right = plain.eval()(x)
        for net in nets.values():
            assert relative(net.eval()(x), right) < 1e-4
    for batch in batches:
        x = torch.randn(batch, 3, size, size, device=day.device)
        y = torch.arange(batch, device=day.device) % 10
        for precision in PRECISIONS:
            base = None
            for name, net in nets.items():
                found = day.timed(_training_step(net.train(), x, y, precision), precision)
                base = base or found["ms"]
                row: Row = {"network": name, "batch": batch, "precision": precision}
                yield row | {"of torch.nn": found["ms"] / base} | found


def hebbian(day: Day) -> Iterator[Row]:
    """Updates of SoftHebb's layers: ours, in plain PyTorch, over unfolded patches; and Sanger's rule."""
    each = [test_hebbian.Layer(8, 3, 3, 6, 1.0)] if day.tiny else test_hebbian.LAYERS
    for layer in each:
        x, weight, u = test_hebbian.inputs(layer, 1.0, day.device)
        t = layer.temperature
        variants = {
            "ours": lambda own, x=x, u=u, t=t: test_hebbian.ours(own, x, u, t),
            "plain PyTorch": lambda own, x=x, u=u, t=t: test_hebbian.ours(own, x, u, t, "reference"),
            "unfolded": lambda own, x=x, u=u, t=t: test_hebbian.unfolded(own, x, u, t),
        }
        right = test_hebbian.ours(weight.double(), x.double(), u.double(), t, "reference")
        for precision in ("float32", "tf32"):
            for name, update in variants.items():
                with bf.precision("tf32" if precision == "tf32" else "ieee"):
                    error = relative(update(weight.clone()), right)
                assert error < (5e-2 if precision == "tf32" else 1e-4), (name, precision, error)
                own = weight.clone()
                row: Row = {"update": f"softhebb, {layer.name}", "how": name, "precision": precision, "error": error}
                yield row | day.timed(lambda own=own, update=update: update(own), precision)
        own = weight.clone()
        step = lambda own=own, x=x, u=u: hebbian_update(own, x, u, rule="hpca", rate=1e-6)  # noqa: E731
        yield {"update": f"hpca, {layer.name}", "how": "ours", "precision": "float32"} | day.timed(step)


def loader(day: Day) -> Iterator[Row]:
    """Batches of augmented images from memory, on the device."""
    count = 64 if day.tiny else 50_000
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=generator)
    settings: dict[str, Any] = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26), "device": day.device}
    x, y = next(iter(BatchStream(images[:32], labels[:32], 32, seed=0, **settings).epoch()))
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    numbers = {one.numpy().tobytes(): index for index, one in enumerate(images[:32])}
    bytes_ = (x.cpu() * std + mean).mul(255).round().to(torch.uint8)
    assert all(labels[numbers[one.numpy().tobytes()]] == label for one, label in zip(bytes_, y.cpu(), strict=True))
    augments = {"none": None, "flip, crop, cutout": Augment(flip=True, crop_padding=4, cutout=16)}
    for batch in (16,) if day.tiny else (96, 256, 1024):
        for name, augment in augments.items():
            stream = BatchStream(images, labels, batch, seed=0, augment=augment, **settings)
            found = day.timed(lambda stream=stream: [None for _ in stream.epoch()])
            seen = count // batch * batch
            yield {"augmentation": name, "batch": batch, "images/s": 1e3 * seen / found["ms"]} | found


def several_cards(day: Day) -> Iterator[Row]:
    """Sums of gradients over two processes: by NCCL on two cards, by gloo on the CPU."""
    if day.device == "cuda" and torch.cuda.device_count() < 2:
        yield {"what": "NCCL", "reason": "needs two cards", "status": "skipped"}
        return
    context = torch.multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        queue = context.SimpleQueue()
        others = [context.Process(target=_sum_gradients, args=(day, rank, folder, queue)) for rank in range(2)]
        for process in others:
            process.start()
        for process in others:
            process.join(max(1.0, day.left()))
        codes = [process.exitcode for process in others]
        if codes != [0, 0]:
            raise RuntimeError(f"the processes ended with {codes}")
        while not queue.empty():
            yield queue.get()


def _sum_gradients(day: Day, rank: int, folder: str, queue: Any) -> None:
    """Be one of the two processes; the first reports."""
    from torch import distributed

    backend = "nccl" if day.device == "cuda" else "gloo"
    device = f"cuda:{rank}" if day.device == "cuda" else "cpu"
    if day.device == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for count in (1000,) if day.tiny else (250_000, 4_000_000, 64_000_000):
        own = torch.full((count,), rank + 1.0, device=device)
        distributed.all_reduce(own)
        assert own.eq(3).all()
        repeats = 3 if day.tiny else 20
        begun = time.perf_counter()
        for _ in range(repeats):
            distributed.all_reduce(own)
        synchronise()
        seconds = (time.perf_counter() - begun) / repeats
        if rank == 0:
            row = {"what": f"{backend}, all_reduce", "numbers": count, "ms": 1e3 * seconds}
            queue.put(row | {"GB/s": own.numel() * own.element_size() / seconds / 1e9})
    distributed.destroy_process_group()
