"""The lists of names that Python, C++ and Triton share. Kernels count them: order matters as much as spelling."""

from __future__ import annotations

import sys

import pytest
import torch

from bionas_fast import native
from bionas_fast.kernels.feedback.records import COMPUTED, MODES, SEGMENT_MODES
from bionas_fast.kernels.hebbian.records import ACTIVITIES, DECAYS, NORMALISATIONS, RULES

#: The operator that gives the list of C++, and the list of Python.
LISTS = {
    "feedback_modes": SEGMENT_MODES,
    "hebbian_activities": ACTIVITIES,
    "hebbian_decays": DECAYS,
    "hebbian_normalisations": NORMALISATIONS,
}


@pytest.mark.parametrize(("operator", "names"), LISTS.items(), ids=LISTS)
def test_cpp_counts_as_python_does(operator, names):
    if not native.load():
        pytest.skip(native.status().reason)
    assert tuple(getattr(torch.ops.bionas_fast_native, operator)()) == names


@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")
def test_triton_counts_as_python_does():
    from bionas_fast.kernels.feedback import triton_kernels

    codes = {name: getattr(triton_kernels, f"_{name.upper()}").value for name in ("weight", "stored", *COMPUTED)}
    assert codes == {name: SEGMENT_MODES.index(name) for name in codes}
    assert {*codes, "direct", "custom"} == set(SEGMENT_MODES)


def test_the_lists_hold_what_rules_are_made_of():
    assert set(COMPUTED) < set(MODES)
    assert {rule.activity for rule in RULES.values()} <= set(ACTIVITIES)
    assert {rule.decay for rule in RULES.values()} == set(DECAYS)
