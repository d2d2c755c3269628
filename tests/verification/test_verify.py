"""The checks of kernels: they pass where kernels are right, and see each that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bionas_fast import backends, native
from bionas_fast.cli.app import main
from bionas_fast.models import planar  # noqa: F401  (declares an op)
from bionas_fast.ops.mixed_edges.backends import native as native_backend
from bionas_fast.verification import CHECKS, large, modes, verify
from bionas_fast.verification import running as checking
from bionas_fast.verification.bounds import compare
from bionas_fast.verification.check import Check, Expected, Target, mapped, wide
from bionas_fast.verification.running import NARROW_MAPS
from helpers.native import needs_native

TARGET = Target("native", "cpu")


def test_every_op_with_kernels_is_checked():
    with_kernels = {op for op in backends.op_names() if backends._implementations[op]}
    assert with_kernels <= set(CHECKS)


@needs_native
def test_doctor_finds_no_fault(forked):
    done = forked("doctor", "--deep", "--json")
    assert done.code == 0, done.stdout[-3000:]
    found = json.loads(done.stdout)["checks"]
    assert {one["status"] for one in found} == {"ok", "skipped"}
    for op in CHECKS:
        for isa in native.isas():
            own = [one for one in found if one["op"] == op and one["backend"] == f"native {isa}"]
            assert own
            assert all(one["status"] == "ok" and one["error"] <= one["bound"] for one in own)
            assert ("bfloat16" in {one["dtype"] for one in own}) == (op in NARROW_MAPS)
    assert all(one["reason"] for one in found if one["status"] == "skipped")


@functools.cache
def of_each_kernel(op: str) -> dict[str, Check]:
    """One check of each kernel of an op, by its name."""
    return {check.kernel: check for check in checking._one_of_each(CHECKS[op](TARGET))}


def changed(check: Check, number: int, change) -> Check:
    """The check of a function of which one result is wrong."""

    def run(*arguments):
        results = [one.clone() for one in check.run(*arguments)]
        change(results, number)
        return results

    return dataclasses.replace(check, run=run)


def largest(check: Check) -> Iterator[tuple[int, int, float]]:
    """Each result: its number, and the element that adds up the largest terms, with their magnitude."""
    expected = check.expect(*wide(check.arguments))
    for number, (right, scale) in enumerate(zip(expected.values, expected.scales, strict=True)):
        if right.numel():
            scales = scale.expand_as(right).flatten()
            at = int(scales.argmax())
            yield number, at, float(scales[at]) or 1.0


@needs_native
@pytest.mark.parametrize("op", NARROW_MAPS)
def test_a_wrong_number_of_a_narrow_map_is_a_failure(op):
    """By a twelfth of the terms that it adds up; a map of its own is rounded to 2⁻⁹, and so are factors on the way."""
    target = dataclasses.replace(TARGET, dtype="bfloat16")
    for check in CHECKS[op](target):
        for number, at, magnitude in largest(check):

            def off(results, number, at=at, by=magnitude / 12):
                results[number].view(-1)[at] += by

            outcome = checking.run(op, target, changed(check, number, off))
            assert outcome.status == "failed", (check.kernel, check.shape, number)


@needs_native
@pytest.mark.parametrize("op", CHECKS)
def test_a_single_wrong_number_is_a_failure(op):
    """By a thousandth of the terms that it adds up, or not a number; in any of the results of any kernel."""
    for kernel, check in of_each_kernel(op).items():
        for number, at, magnitude in largest(check):

            def slightly(results, number, at=at, by=1e-3 * magnitude):
                results[number].view(-1)[at] += by

            def entirely(results, number):
                results[number].view(-1)[-1] = torch.nan

            for change in (slightly, entirely):
                outcome = checking.run(op, TARGET, changed(check, number, change))
                assert (outcome.status, outcome.error > outcome.bound) == ("failed", True), (kernel, number)
                assert f"result {number}, element" in outcome.reason
        assert checking.run(op, TARGET, check).status == "ok"


@needs_native
@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda results: results[:-1], "results, expected"),
        (lambda results: [results[0][:-1], *results[1:]], "result 0: shape"),
    ],
    ids=["missing", "shape"],
)
def test_results_that_do_not_fit_are_failures(result, reason):
    check = of_each_kernel("mixed_edges")["pooling, forward"]
    outcome = checking.run(
        "mixed_edges", TARGET, dataclasses.replace(check, run=lambda *given: result(check.run(*given)))
    )
    assert outcome.status == "failed"
    assert reason in outcome.reason


def test_an_error_is_measured_in_the_terms_of_its_sum():
    right, scale = torch.tensor([1e-6, 3.0]).double(), torch.tensor([2.0, 3.0]).double()
    off = torch.tensor([1e-6 + 2e-5, 3.0])
    error, bound, reason = compare([off], Expected([right], [scale], [2e-5]))
    assert (bound, reason) == (2e-5, "")
    assert error == pytest.approx(1e-5, rel=1e-2)
    assert compare([off], Expected([right], [scale], [5e-6]))[2].startswith("result 0, element 0")


@needs_native
@pytest.mark.parametrize(
    ("op", "kernel"),
    [
        ("mixed_edges", "stage, forward"),
        ("mixed_edges", "stage, backward"),
        ("feedback_conv", "feedback layer, drawn_sign"),
    ],
)
def test_factors_of_tf32_are_no_float32(op, kernel):
    """Products of factors with 11 bits are seen, although each error is a small one."""
    check = of_each_kernel(op)[kernel]

    def shorter(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return (tensor.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)

    rounded = dataclasses.replace(check, run=lambda *given: check.run(*mapped(shorter, given)))
    assert checking.run(op, TARGET, rounded).status == "failed"


@pytest.fixture
def few(monkeypatch):
    """Only the checks of one op, with one instruction set."""
    monkeypatch.setattr(checking, "CHECKS", {"mixed_edges": CHECKS["mixed_edges"]})
    monkeypatch.setattr(native, "isas", lambda: ("baseline",))


def doctor(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--deep", *words])
    return end.value.code or 0, capsys.readouterr().out


@needs_native
def test_doctor_names_a_broken_kernel(few, monkeypatch, capsys):
    right = native_backend.Native.stage_forward  # no part of another check

    def broken(self, *arguments):
        z, sums = right(self, *arguments)
        z[-1, -1, -1, -1, -1] *= 1.001
        return z, sums

    monkeypatch.setattr(native_backend.Native, "stage_forward", broken)
    code, said = doctor(capsys)
    assert code == 1
    lines = [line for line in said.splitlines() if " native baseline" in line]
    failed = [line for line in lines if line.startswith("failed")]
    assert failed
    assert all(re.match(r"failed +stage, forward +native baseline +cpu +float32 .* expected", line) for line in failed)
    assert all(line.startswith("ok ") for line in lines if "stage, forward" not in line)
    assert re.search(rf"\d+ checks: \d+ ok, {len(failed)} failed, \d+ skipped", said)
    code, said = doctor(capsys, "--json")
    assert code == 1
    found = json.loads(said)["checks"]
    assert {one["kernel"] for one in found if one["status"] == "failed"} == {"stage, forward"}


@needs_native
def test_an_exception_fails_its_check_alone(few, monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("an illegal\nmemory access")

    monkeypatch.setattr(native_backend.Native, "sum_backward", broken)
    code, said = doctor(capsys)
    assert code == 1
    failed = [line for line in said.splitlines() if line.startswith("failed")]
    assert failed
    assert all("mixed sum, backward" in line and "RuntimeError: an illegal memory access" in line for line in failed)
    assert re.search(r"ok +separable edges, backward", said)


def test_the_rest_is_skipped_when_the_time_is_over(few):
    outcomes = [*verify(0)]
    assert {outcome.status for outcome in outcomes} == {"skipped"}
    if native.load():
        assert sum("seconds are over" in outcome.reason for outcome in outcomes) > 10
    assert any("runs on CUDA devices only" in outcome.reason for outcome in outcomes)


def test_tensors_that_are_one_stay_one():
    one, other = torch.ones(1), torch.ones(1)
    first, (second, third) = mapped(Tensor.double, (one, [one, other]))
    assert first is second
    assert third is not first
    assert third.dtype == torch.float64


def interpreted_checks_with_more_elements_than_32_bits_count():
    """Tiny ones here."""
    for check in large.checks(Target("triton", "cpu", "float16"), (3, 4, 3, 2)):
        outcome = checking.run("mixed_edges", Target("triton", "cpu", "float16"), check)
        assert outcome.status == "ok", outcome


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def interpreted_checks_of_triton(dtype):
    target = Target("triton", "cpu", dtype)
    for op, kernels in (("mixed_edges", "mixed sum"), ("feedback_segments", "feedback")):
        checks = [check for check in CHECKS[op](target) if check.kernel.startswith(kernels)]
        assert checks
        for check in checks:
            outcome = checking.run(op, target, check)
            assert outcome.status == "ok", outcome


def adding(x: Tensor) -> list[Tensor]:
    return [x + 1]


def of_sum(x: Tensor) -> Expected:
    return Expected([x + 1], [x.abs() + 1], [1e-6])


def test_on_a_card_a_kernel_on_the_wrong_stream_is_seen(cuda):
    x = torch.arange(1.0, 1000.0, device=cuda)
    first = torch.cuda.current_stream()

    def elsewhere(x: Tensor) -> list[Tensor]:
        with torch.cuda.stream(first):
            return adding(x)

    for run, status in ((adding, "ok"), (elsewhere, "failed")):
        check = Check("sum", "", (x,), run, of_sum)
        assert checking.run("sum", Target("triton", "cuda:0"), check, "second stream").status == status


def test_on_a_card_numbers_of_the_capture_are_seen(cuda):
    x, seen = torch.arange(1.0, 1000.0, device=cuda), []

    def remembering(x: Tensor) -> list[Tensor]:
        seen.append(x.clone()) if not seen else None
        return adding(seen[0])

    for run, status in ((adding, "ok"), (remembering, "failed")):
        check = Check("sum", "", (x,), run, of_sum)
        assert checking.run("sum", Target("triton", "cuda:0"), check, "graph replay").status == status


def test_on_a_card_no_kernel_is_wrong(cuda):
    outcomes = [*verify(600)]
    assert {outcome.mode for outcome in outcomes if outcome.status == "ok"} == set(modes.MODES)
    assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
