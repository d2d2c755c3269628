"""The result of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from bionas_fast.models import NetworkSize

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, repr=False)
class TrainResult(Generic[Network]):
    """A trained network.

    Attributes:
        network: the network, in evaluation mode.
        test_accuracy: accuracy on the test images, in percent.
        metrics: one mapping per epoch.
        size: weights, multiply-adds and the shares of the learning rules.
        images_per_second: training images per second, over the whole run with its tests.
        run_dir: folder of the run, or None if nothing was written.
    """

    network: Network
    test_accuracy: float
    metrics: list[dict[str, Any]]
    run_dir: Path | None
    size: NetworkSize
    images_per_second: float

    def __repr__(self) -> str:
        network = f"{type(self.network).__name__} of {self.size.parameters:,} parameters"
        return f"TrainResult({network}, test accuracy {self.test_accuracy:.2f} %, {self.run_dir})"

    def lines(self) -> dict[str, str]:
        """Format the result as names and values for people."""
        last = self.metrics[-1]
        top5 = {"top-5 accuracy": f"{last['test_top5']:.2f} %"} if "test_top5" in last else {}
        return {
            **self.size.lines(),
            "test accuracy": f"{self.test_accuracy:.2f} %",
            **top5,
            "speed": f"{self.images_per_second:,.0f} images/s",
        }
