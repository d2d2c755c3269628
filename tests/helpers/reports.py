"""Runs without the drawings of their reports, which would take longer than the small runs of the tests.

The reports have tests of their own; those that look at the report of a run ask for it by :func:`drawn`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

#: What is written in place of the report.
REPORT = "<svg/>"


def _users() -> tuple[ModuleType, ...]:
    """The modules of the runs that end with a report."""
    from bionas_fast.searching import loop
    from bionas_fast.training import network

    return loop, network


def _write_report(run: Path, **_: Any) -> None:
    from bionas_fast.runs.files import write_atomic

    write_atomic(run / "report.html", REPORT)


def leave_out() -> None:
    """From now on, runs of this process write :data:`REPORT`; the command ``report`` still draws."""
    for module in _users():
        module.report = SimpleNamespace(write_report=_write_report)  # type: ignore[attr-defined]


@contextmanager
def drawn() -> Iterator[None]:
    """Inside the block, runs write their reports."""
    from bionas_fast import report

    for module in _users():
        module.report = report  # type: ignore[attr-defined]
    try:
        yield
    finally:
        leave_out()
