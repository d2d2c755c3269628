"""The result of a training run."""

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
        network: the network, in evaluation mode.
        test_accuracy: accuracy on the test images, in percent.
        metrics: one mapping per epoch.
        run_dir: folder of the run, or None if nothing was written.
    """

    network: Network
    test_accuracy: float
    metrics: list[dict[str, Any]]
    run_dir: Path | None
