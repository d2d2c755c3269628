"""Benchmarks: ``pytest benchmarks/ --benchmark-only``.

Every benchmark first checks that what it times is right. Variants are timed in turns within one process, so that what
the machine does besides slows all of them; a first turn is dropped, medians are compared, and the ratios are what is
reported. A target is printed next to its ratio; it holds for the machine it names and fails nothing.
"""

from __future__ import annotations

import os
import platform

os.environ.setdefault("BIONAS_FAST_INSTRUCTION_SETS", "all")  # they are compared

import pytest
import torch

import bionas_fast as bf
from measuring import Report

_report = Report()


def pytest_addoption(parser):
    parser.addoption("--with-compile", action="store_true", help="time torch.compile too: minutes of compilation")


@pytest.fixture(scope="session")
def report() -> Report:
    """Where a benchmark puts its lines; printed when all have run."""
    return _report


@pytest.fixture(autouse=True)
def _ieee():
    """The results are checked to the precision of float32; gpu_sections.py measures TF32, too."""
    with bf.precision("ieee"):
        yield


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request) -> str:
    return request.param


def pytest_terminal_summary(terminalreporter):
    if not _report.lines:
        return
    terminalreporter.section("ratios")
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    terminalreporter.write_line(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {', '.join(cards) or 'no GPU'}"
    )
    for line in _report.lines:
        terminalreporter.write_line(line)
