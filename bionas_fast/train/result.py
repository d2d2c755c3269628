"""The result of every training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TrainResult(Generic[Network]):
    """A trained network.

    Attributes:
        network: in evaluation mode.
        test_accuracy: in percent.
        metrics: one mapping for every epoch.
        run_dir: the folder of the run, or None where nothing was written.
    """

    network: Network
    test_accuracy: float
    metrics: list[dict[str, Any]]
    run_dir: Path | None
