"""Compiled operators called with arguments that do not fit: an error, never the end of the process."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bionas_fast import native
from helpers import mismatched_calls
from helpers.native import needs_native

pytestmark = needs_native
PROGRAM = Path(mismatched_calls.__file__)


def test_every_operator_has_a_sample():
    """And the registry lists those that are known to be there."""
    assert set(mismatched_calls.operators()) == set(mismatched_calls.samples())
    assert {"stage_forward", "separable_edges_backward", "normalised_sum", "weight_gradient"} <= set(
        mismatched_calls.operators()
    )


def test_mismatched_calls(tmp_path):
    """A short run; benchmarks/fuzz_operators.py makes longer ones, and under sanitizers."""
    progress = tmp_path / "progress"
    progress.write_bytes(bytes(8))
    command = [sys.executable, PROGRAM, "11", "4000", progress]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=PROGRAM.parents[2])
    call = struct.unpack("q", progress.read_bytes())[0]
    assert done.returncode == 0, f"call {call} of seed 11 ended with {done.returncode}: {done.stderr[-2000:]}"
    raised, ran = map(int, re.findall(r"\d+", done.stdout))
    assert raised + ran == 4000
    assert raised > 2000  # most changes do not fit, and most others change numbers only


def sample(name, which=0):
    return list(mismatched_calls.samples()[name][which])


def with_stage(position, value):
    arguments = sample("stage_forward")
    stage = list(arguments[2])
    stage[position] = value
    return [*arguments[:2], stage, *arguments[3:]]


def with_plan(position, value):
    arguments = sample("separable_edges")
    plan = list(arguments[2])
    plan[position] = value
    return [*arguments[:2], plan, *arguments[3:]]


def with_map(x):
    return [x, *sample("stage_forward")[1:]]


MAP = torch.randn(2, 5, 4, 16)
CASES = {
    "dilation of -2**63": ("stage_forward", lambda: with_stage(4, -(2**63)), "dilations: expected 1 to 64"),
    "dilation of 2**32 + 1": ("stage_forward", lambda: with_stage(4, 2**32 + 1), "dilations: expected 1 to 64"),
    "kernel of 4": ("stage_forward", lambda: with_stage(1, 4), "kernels: expected 3 or 5, got 4"),
    "stride of 0": ("stage_forward", lambda: with_stage(0, 0), "stride: expected 1 to 2, got 0"),
    "no images": ("stage_forward", lambda: with_map(MAP[:0]), "x: expected at least one image and position"),
    "no positions": ("stage_forward", lambda: with_map(MAP[:, :0]), "x: expected at least one image and position"),
    "15 channels": ("stage_forward", lambda: with_map(torch.randn(2, 5, 4, 15)), "x: expected a multiple of 16"),
    "float64": ("stage_forward", lambda: with_map(MAP.double()), "x: expected Float"),
    "gaps": ("stage_forward", lambda: with_map(MAP.transpose(1, 2)), "x: expected a contiguous tensor"),
    "a scalar": ("stage_forward", lambda: with_map(torch.tensor(1.0)), "x: expected 4 dimensions, got 0"),
    "edge of 9": ("separable_edges", lambda: with_plan(3, 9), "edges: expected 0 to 1, got 9"),
    "2**62 edges": ("separable_edges", lambda: with_plan(0, 2**62), "edges: expected 1 to 4096"),
    "2**32 + 2 edges": ("separable_edges", lambda: with_plan(0, 2**32 + 2), "edges: expected 1 to 4096"),
    "-1 second stages": ("separable_edges", lambda: with_plan(1, -1), "twice: expected 0 to 3, got -1"),
    "an edge without output": (
        "separable_edges", lambda: [*sample("separable_edges")[:5], [None]], "into: expected one for each edge"
    ),
    "term of map 99": (
        "mixed_sum", lambda: [sample("mixed_sum")[0], [2, 0, 2, 1, 99, 0, 1, 1, 0], *sample("mixed_sum")[2:]],
        "index: expected 0 to 3, got 99",
    ),
    "maps of another size": (
        "mixed_sum", lambda: [[torch.randn(3, 2, 5, 4, 16), torch.randn(1, 2, 5, 3, 16)], *sample("mixed_sum")[1:]],
        "maps: expected maps of the same shape",
    ),
    "2**40 maps without elements": (
        "mixed_sum", lambda: [[torch.empty(2**40, 0, 5, 4, 16)], *sample("mixed_sum")[1:]],
        "maps: expected at least one image",
    ),
    "rows of moments": (
        "normalised_sum",
        lambda: [*sample("normalised_sum")[:3], [torch.rand(2, 15).double()] * 2, *sample("normalised_sum")[4:]],
        r"total, squares: expected \[2, 16\]",
    ),
    "a negative length": (
        "feedback_segments",
        lambda: [*sample("feedback_segments")[:3], torch.tensor([[-10, 0], [50, 0]]), torch.ones(2, 2).double()],
        "segments: expected 0 to 40, got -10",
    ),
    "a short stream": (
        "feedback_segments",
        lambda: [*sample("feedback_segments")[:2], torch.tensor([1, 2]), *sample("feedback_segments")[3:]],
        "stream: expected a seed and a draw of each segment",
    ),
    "2**62 random numbers": ("uniform", lambda: [[2**31, 2**31], torch.tensor([1, 1])], "less than"),
    "a negative size": ("uniform", lambda: [[-3], torch.tensor([1, 1])], "shape: expected 0 to"),
    "padding of 2**62": (
        "weight_gradient", lambda: [*sample("weight_gradient")[:2], [2**62, 1]], "padding: expected 0 to"
    ),
    "groups of 0": ("hebbian_activity", lambda: [*sample("hebbian_activity")[:6], 0], "groups"),
    "pooling of stride 3": ("pooling", lambda: [MAP, 3], "stride: expected 1 to 2, got 3"),
    "an image that is not there": (
        "augment", lambda: [sample("augment")[0], torch.tensor([6, 7, 3]), *sample("augment")[2:]],
        "index: expected 0 to 6, got 7"
    ),
    "a crop far away": (
        "augment", lambda: [*sample("augment")[:2], torch.full((3, 5), 2**62), *sample("augment")[3:]],
        "place: expected -16777216 to 16777216"
    ),
    "a table of 255 values": (
        "augment", lambda: [*sample("augment")[:4], torch.rand(2, 255)], r"values: expected \[2, 256\]"
    ),
    "no reductions": (
        "factorized_reduce", lambda: [MAP, [torch.randn(0, 6, 12), torch.randn(0, 6, 12)]], "reductions: expected 1 to"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_the_argument(case):
    name, arguments, message = CASES[case]
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.bionas_fast_native, name)(*arguments())


def test_another_device():
    """On the meta device the fakes run, and refuse as well what would make them run for ever."""
    maps, terms, *others, into = sample("mixed_sum")
    with pytest.raises(RuntimeError, match="into: expected one for each sum"):
        torch.ops.bionas_fast_native.mixed_sum([m.to("meta") for m in maps], [2**62, *terms[1:]], *others, into)
    with pytest.raises(RuntimeError, match="stride: expected 1 to 2, got 0"):
        torch.ops.bionas_fast_native.pooling(MAP.to("meta"), 0)


def test_valid_calls_still_run():
    assert native.load()
    for name, calls in mismatched_calls.samples().items():
        for arguments in calls:
            getattr(torch.ops.bionas_fast_native, name)(*arguments)
