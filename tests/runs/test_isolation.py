"""Runs give the results that each gives alone: in threads, under the modes of their callers, and started together."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest
import torch

import bionas_fast as bf
from bionas_fast.runs.progress import Progress
from helpers import killing
from helpers.genotypes import GENOTYPE
from helpers.runs import SETTINGS, plain


def run(kind: str, seed: int = 0, **how: Any) -> list[dict[str, Any]]:
    """Run with everything on that draws random numbers, and return the metrics."""
    settings = {**SETTINGS[kind], "epochs": 2, "seed": seed}
    if kind == "train":
        return bf.train(GENOTYPE, bf.TrainConfig(**settings), **{"out": False, **how}).metrics
    if kind == "softhebb":
        return bf.train_softhebb(bf.SoftHebbConfig(**settings), **{"out": False, **how}).metrics
    return bf.search(bf.SearchConfig(**settings, method="eg-published", population=4), **how).metrics


class InTurns(Progress):
    """Waits after each step until the other thread has done one, too."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    def step(self, loss: float | None = None) -> None:
        with suppress(threading.BrokenBarrierError):  # broken when the other run has ended
            self.barrier.wait(timeout=10)


@pytest.mark.parametrize("kinds", [("train", "softhebb"), ("search", "train"), ("train", "train")], ids="-".join)
def test_threads_do_not_disturb_each_other(kinds, tmp_path):
    def how(number: int, where: str) -> dict[str, Any]:
        return {"out": tmp_path / f"{where}{number}"}

    alone = [run(kind, seed, **how(seed, "alone")) for seed, kind in enumerate(kinds)]
    barrier = threading.Barrier(2)
    together: list[Any] = [None, None]
    torch.manual_seed(7)
    state = torch.get_rng_state()

    def work(seed: int, kind: str) -> None:
        together[seed] = run(kind, seed, progress=InTurns(barrier), **how(seed, "together"))
        barrier.abort()

    threads = [threading.Thread(target=work, args=item) for item in enumerate(kinds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [plain(rows) for rows in together] == [plain(rows) for rows in alone]
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_built_in_threads_are_those_built_alone():
    def weights(seed: int) -> list[torch.Tensor]:
        return list(bf.build_network(GENOTYPE, channels=2, cells=3, num_classes=4, seed=seed).parameters())

    found: dict[int, list[list[torch.Tensor]]] = {0: [], 1: []}
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda s=seed: found[s].extend(weights(s) for _ in range(5))) for seed in found
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    for seed, networks in found.items():
        assert all(all(map(torch.equal, network, weights(seed))) for network in networks)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "set_default_device": lambda: default_device("meta"),
    "with_device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu"),
}


@pytest.fixture(scope="module")
def plainly():
    """The metrics of each kind of run under no mode; memoised."""
    found: dict[str, Any] = {}

    def metrics(kind: str) -> Any:
        if kind not in found:
            found[kind] = plain(run(kind))
        return found[kind]

    return metrics


@pytest.mark.parametrize("kind", ["train", "softhebb", "search"])
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_do_not_matter(kind, mode, plainly, tmp_path):
    expected = plainly(kind) if kind != "search" else plain(run(kind, out=tmp_path / "plain"))
    with MODES[mode]():
        assert plain(run(kind, out=tmp_path / "run")) == expected
        if kind != "search":
            loaded = bf.load(tmp_path / "run")
            assert {p.dtype for p in loaded.parameters()} == {torch.float32}
            assert {p.device.type for p in loaded.parameters()} == {"cpu"}


#: Three processes with two threads each, that all begin a search without a folder at one time of a stopped clock.
TOGETHER = """
import datetime, multiprocessing, os, sys, threading
import bionas_fast as bf
from bionas_fast.runs import folder
from helpers.searches import TINY
from helpers import killing
from helpers.runs import SETTINGS

class Stopped(datetime.datetime):
    @classmethod
    def now(cls, *zone):
        return cls(2026, 1, 2, 3, 4, 5)

folder.datetime = Stopped
from helpers import reports
reports.leave_out()
killing.register()

def work(barrier):
    def search():
        found = bf.search(bf.SearchConfig(**{**SETTINGS["search"], "epochs": 1})).run_dir
        os.write(1, f"{found}\\n".encode())  # at once: the lines of several threads and processes
    threads = [threading.Thread(target=search) for _ in range(2)]
    barrier.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=work, args=(barrier,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
"""


def test_runs_started_together_get_different_folders(tmp_path):
    helpers = str(killing.__file__).rpartition("/helpers/")[0]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {helpers!r})\n{TOGETHER}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    first = f"search-{killing.DATASET}-{killing.SPACE}-darts-seed0-20260102-030405"
    names = {first, *(f"{first}-{number}" for number in range(2, 7))}
    assert {line.rpartition("/")[2] for line in done.stdout.split()} == names
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names
    assert all((path / "report.html").exists() for path in (tmp_path / "runs").iterdir())
