"""Numbers produced by running published code, stored next to a development checkout and absent elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(os.environ.get("BIONAS_FAST_ORACLES", Path(__file__).parents[4] / "shared" / "oracles"))


def cases(topic: str, prefix: str = "") -> list[Any]:
    """The case names of a topic as pytest parameters; a single skipped one where the data is absent."""
    path = FOLDER / f"{topic}.json"
    if not path.is_file():
        return [
            pytest.param("absent", marks=pytest.mark.skip(reason=f"no reference data {topic} next to this checkout"))
        ]
    names = [name for name in json.loads(path.read_text())["cases"] if name.startswith(prefix)]
    assert names, f"{topic} has no case that starts with {prefix!r}"
    return names


def load(topic: str, case: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(arrays as tensors, the case's description)."""
    info = json.loads((FOLDER / f"{topic}.json").read_text())["cases"][case]
    with np.load(FOLDER / f"{topic}.npz") as stored:
        return {name: torch.from_numpy(stored[f"{case}/{name}"]) for name in info["arrays"]}, info


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str = "") -> None:
    """The largest error is at most ``tolerance`` times the largest entry of what is expected."""
    assert actual.shape == expected.shape, f"{what}: {list(actual.shape)} instead of {list(expected.shape)}"
    error = (actual.detach().double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    assert error <= tolerance * scale, f"{what}: error {error:.3g} for a largest entry of {scale:.3g}"
