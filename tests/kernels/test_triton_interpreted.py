"""The Triton kernels under Triton's interpreter, on the CPU: the tests named ``interpreted_*`` of these files.

They share a process, because each has to import PyTorch and Triton. Those of a single file run with
``TRITON_INTERPRET=1 pytest -n0 -o python_functions="interpreted_*" tests/kernels/test_triton_feedback.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.interpreter import run_interpreted

TESTS = Path(__file__).parents[1]
FILES = ("kernels/test_triton_feedback.py", "kernels/test_triton_supernet.py", "verification/test_verify.py")


def test_all_files_are_listed():
    having = {file for file in TESTS.rglob("test_*.py") if "\ndef interpreted_" in file.read_text()}
    assert having == {TESTS / file for file in FILES}


@pytest.mark.slow
def test_under_the_interpreter():
    run_interpreted(*(TESTS / file for file in FILES))
