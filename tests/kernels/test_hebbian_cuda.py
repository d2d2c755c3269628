"""The Hebbian kernels for CUDA against the reference in float64, run on the host by as many threads as a block has."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bionas_fast.kernels.hebbian import reference
from bionas_fast.ops.hebbian import NORMALISATIONS
from helpers.programs import SOURCES, Unavailable

#: In the order of the kernels' enums.
ACTIVITIES = {"linear": "plain", "normalised": "hebb", "hard": "hard_wta", "soft": "soft_wta", "competing": "softhebb"}
DECAYS = ("none", "square", "activity", "output")


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Errors are at most ``tolerance`` times the largest finite entry; what is not finite is the same."""
    assert actual.shape == expected.shape
    largest = max([0.0, *expected[expected.isfinite()].abs().flatten().tolist()])
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * largest + 1e-30, equal_nan=True)


class Results:
    """The output of the program."""

    def __init__(self, data: bytes):
        self.data, self.read = data, 0

    def take(self, dtype: torch.dtype, *shape: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        begin, self.read = self.read, self.read + tensor.numel() * dtype.itemsize
        if tensor.numel():
            tensor.view(-1)[:] = torch.frombuffer(bytearray(self.data[begin : self.read]), dtype=dtype)
        return tensor


def as_bytes(*parts: Tensor | None) -> bytes:
    return b"".join(part.numpy().tobytes() for part in parts if part is not None)


@dataclass(frozen=True)
class Activity:
    n: int
    groups: int
    each: int  # channels of a group
    p: int
    activity: str
    decay: str
    temperature: float = 1.0
    ties: bool = False
    own: bool = False  # an activity of the caller's
    divided: bool = False
    value: float = 0.0  # that a few elements of u have, where it is not 0

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        generator = torch.Generator().manual_seed(self.each + self.p)
        u = 3 * torch.randn(self.n, self.groups * self.each, self.p, generator=generator)
        u = u.round() if self.ties else u
        if self.value:
            u[0, -1, :1], u[-1, -2:, -1] = self.value, self.value
        given = torch.randn(u.shape, generator=generator) if self.own else None
        norm = torch.rand(self.n, self.groups, self.p, generator=generator) + 0.1 if self.divided else None
        return u, given, norm

    @property
    def made(self) -> bool:
        return self.activity != "linear" or self.divided

    def encoded(self) -> bytes:
        kind, decay = list(ACTIVITIES).index(self.activity), DECAYS.index(self.decay)
        sizes = self.n, self.groups * self.each, self.p, self.groups
        numbers = np.array([0, *sizes, kind, decay, self.own, self.divided, self.made], np.int64).tobytes()
        return numbers + np.float32(self.temperature).tobytes() + as_bytes(*self.tensors())

    def taken_from(self, results: Results) -> tuple[Tensor, Tensor]:
        k = self.groups * self.each
        y = results.take(torch.float32, *((self.n, k, self.p) if self.made else (0,)))
        return y, results.take(torch.float64, k * (self.decay != "none"))

    def check(self, y: Tensor, total: Tensor) -> None:
        u, given, norm = self.tensors()
        expected = reference.activity(u.double(), ACTIVITIES[self.activity], self.temperature, self.groups)
        if given is not None:
            expected = given.double()
        if norm is not None:
            expected = expected / norm.double().repeat_interleave(self.each, dim=1)
        if self.made:
            assert_near(y, expected)
        if self.decay != "none":
            factor = {"square": expected, "output": u.double()}.get(self.decay, torch.ones(()))
            terms = (expected * factor).transpose(0, 1).flatten(1)
            assert torch.equal(total.isfinite(), terms.sum(1).isfinite())
            errors = (total - terms.sum(1)).abs() - 1e-5 * terms.abs().sum(1)
            assert (errors[total.isfinite()] <= 1e-30).all()


@dataclass(frozen=True)
class Move:
    groups: int
    each: int
    d: int
    normalisation: str
    decays: bool
    value: float = 0.0  # of one element of the outer product, where it is not 0
    scale: float = 1.0  # of the outer product

    def tensors(self) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.d)
        k = self.groups * self.each
        outer, weight = torch.randn(2, k, self.d, generator=generator)
        outer *= self.scale
        if self.value:
            outer[1, -1] = self.value
        total = torch.randn(k, generator=generator, dtype=torch.float64) if self.decays else None
        return total, torch.rand(k, generator=generator), outer, weight

    def encoded(self) -> bytes:
        k, how = self.groups * self.each, NORMALISATIONS.index(self.normalisation)
        numbers = np.array([1, k, self.d, self.groups, how, self.decays], np.int64).tobytes()
        return numbers + np.float64(7).tobytes() + as_bytes(*self.tensors())

    def taken_from(self, results: Results) -> tuple[Tensor, Tensor]:
        shape = self.groups * self.each, self.d
        return results.take(torch.float32, *shape), results.take(torch.float32, *shape)

    def check(self, delta: Tensor, weight: Tensor) -> None:
        total, rate, outer, before = self.tensors()
        expected = (outer.double() if total is None else outer - total[:, None] * before) / 7
        if self.d:
            expected = reference.scaled(expected, self.normalisation, self.groups)
        assert_near(delta, expected)
        assert_near(weight, reference.normalise(before + rate[:, None] * expected, self.normalisation))


#: n, groups, channels of a group, positions: less than a warp has, as many and more; several warps from 8 channels on.
SIZES = [(2, 1, 1, 1), (2, 3, 1, 33), (1, 2, 3, 31), (1, 1, 17, 32)]
CASES = [
    *(Activity(*size, kind, "square") for size, kind in product(SIZES, ACTIVITIES)),
    *(Activity(2, 2, 9, 65, *kind) for kind in product(ACTIVITIES, DECAYS)),
    *(Activity(2, 2, 9, 40, kind, "output", ties=True, divided=True) for kind in ACTIVITIES),
    *(Activity(2, 2, 9, 5, kind, "output", t) for kind, t in product(("soft", "competing"), (0.0, 0.3, 30.0, -30.0))),
    *(Activity(1, 2, 3, 40, "linear", decay, own=True, divided=divided) for decay, divided in product(DECAYS, (0, 1))),
    *(Activity(*size, "soft", "activity") for size in [(0, 1, 3, 5), (2, 1, 3, 0)]),
    *(
        Activity(2, 1, 9, 40, kind, "activity", divided=True, value=value)
        for kind, value in product(ACTIVITIES, (torch.nan, torch.inf, -torch.inf))
    ),
    *(Move(2, 3, d, how, True) for d, how in product((0, 1, 32, 130), NORMALISATIONS)),
    *(Move(2, 3, 75, how, False) for how in NORMALISATIONS),
    *(Move(1, 40, 3, how, True) for how in NORMALISATIONS),  # more filters than threads
    *(Move(2, 3, 5, how, False, scale=0.0) for how in NORMALISATIONS),
    *(Move(2, 3, 37, how, True, torch.nan) for how in NORMALISATIONS),
]
#: More channels than the threads of a block sum up at once; more tiles and groups than there are blocks.
LARGE = [
    *(Activity(1, 1, 300, 3, kind, "output") for kind in ("hard", "competing")),
    Activity(1030, 1, 1, 1, "linear", "square"),
    Activity(1, 1030, 1, 2, "hard", "activity"),
]


@pytest.fixture
def program(programs):
    """For a sanitizer, or none, and for sources: the kernels and what calls them, as a program of the host."""

    def build(*what: Any) -> Path:
        try:
            return programs.of_cuda(*what)
        except Unavailable as reason:
            pytest.skip(str(reason))

    return build


def run(program: Path, cases: list[Activity | Move], order: str = "forwards") -> tuple[bytes, str]:
    """The results, and what a sanitizer says."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given", Path(folder) / "made"
        given.write_bytes(np.int64(len(cases)).tobytes() + b"".join(case.encoded() for case in cases))
        done = subprocess.run([program, given, made, order], capture_output=True, text=True, timeout=300)
        return made.read_bytes(), done.stderr if done.returncode else ""


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"], ids=["address", "thread"])
def test_kernels_are_the_reference(program, sanitizer):
    """In any order of the blocks, with a sanitizer and without."""
    # Blocks run one after the other, so many of them can have no more races than a few; and they take their time.
    cases = CASES[::2] if sanitizer == "thread" else CASES + LARGE
    made, said = run(program(sanitizer), cases)
    assert said == ""
    if sanitizer != "thread":
        assert run(program(), cases, "backwards") == (made, "")
    results = Results(made)
    for case in cases:
        try:
            case.check(*case.taken_from(results))
        except AssertionError as error:
            raise AssertionError(str(case)) from error
    assert results.read == len(made)


@pytest.mark.parametrize("barrier", ["__syncthreads();", "__syncwarp();"])
def test_a_missing_barrier_is_noticed(program, tmp_path, barrier):
    """Premise of the other tests: the threads of the host do race."""
    shutil.copytree(SOURCES, tmp_path / "csrc")
    kernels = tmp_path / "csrc" / "cuda" / "hebbian.cuh"
    assert barrier in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(barrier, ""))
    _, said = run(program("thread", tmp_path / "csrc"), [Activity(2, 2, 9, 65, "competing", "output")])
    assert "data race" in said
