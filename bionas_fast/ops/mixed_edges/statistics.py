"""The running statistics of the batch normalisations of the candidates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bionas_fast.kernels import batch_norm
from bionas_fast.kernels.batch_norm import Synchroniser
from bionas_fast.kernels.records import Moments, Running


@dataclass
class Statistics:
    """Running mean and variance, [M + K, C]: M normalisations after first stages, then those of the K maps.

    Attributes:
        training: whether normalisation uses the statistics of the batch and updates the running ones.
        synchroniser: sums the statistics of a batch over processes; None for those of this process alone.
    """

    mean: Tensor
    var: Tensor
    training: bool
    synchroniser: Synchroniser | None = None
    momentum: float = 0.1

    def update(self, moments: Moments, positions: int) -> None:
        """Update the running statistics by those of a batch, which may have more channels."""
        batch_norm.update(self.running, moments, positions, self.synchroniser)

    @property
    def running(self) -> Running:
        """The statistics as a record of the kernels."""
        return Running(self.mean, self.var, self.momentum)
