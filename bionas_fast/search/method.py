"""What a search method adds to the loop: when and how the architecture parameters move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bionas_fast.data import BatchStream
from bionas_fast.runtime.precision import Precision
from bionas_fast.search.config import SearchConfig
from bionas_fast.space import Genotype
from bionas_fast.supernet import Mixing, Supernet

#: Settings of how candidates are mixed.
MIXING = ("factorised", "edge_normalisation", "auxiliary_skip")


class Strategy:
    """A search method. The loop trains the weights and calls these.

    A search may be stopped after any weight step and go on in another process, in the middle of an epoch. So whatever a
    method keeps from one call to a later one, what it does once an epoch included, belongs into :meth:`state_dict`.

    Args:
        optimizer: that of the weights.
        precision: what forward passes run in; by default float32.

    Attributes:
        options: those settings of single methods that this one uses; any other must be left at its default.
    """

    options: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        net: Supernet,
        config: SearchConfig,
        optimizer: torch.optim.Optimizer,
        precision: Precision | None = None,
    ) -> None:
        self.net, self.config, self.optimizer = net, config, optimizer
        self.precision = precision or Precision()
        self.epoch = 0
        self.auxiliary_skip = 0.0

    def prepare(self, epoch: int) -> None:
        """Called whenever an epoch begins or is taken up again: sets what follows from its number."""
        self.epoch = epoch
        if self.config.auxiliary_skip:  # DARTS- (Chu et al. 2021): falls from 1 to 0
            self.auxiliary_skip = 1 - epoch / self.config.epochs

    @property
    def warming_up(self) -> bool:
        """Whether the weights are still trained alone."""
        return self.epoch < self.config.warmup_epochs

    def before_epoch(self, valid: BatchStream) -> None:
        """Called before the first weight step of an epoch."""

    def before_weight_step(self, x: Tensor, y: Tensor, valid: BatchStream) -> None:
        """Called before the weight step on the batch x, y; takes what other batches it needs from ``valid``."""

    def mixing(self) -> Mixing:
        """What the candidates are mixed by in the next pass in training."""
        return self.net.architecture.mixing(auxiliary_skip=self.auxiliary_skip)

    def found(self) -> Mixing:
        """What they are mixed by when the supernet is judged after an epoch."""
        return self.net.architecture.mixing(auxiliary_skip=self.auxiliary_skip)

    def genotype(self) -> Genotype:
        """The architecture that the search would end with now."""
        return self.net.genotype()

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on after an interruption: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state again.

        Raises:
            InputError: it does not fit. KeyError, TypeError, ValueError and RuntimeError are understood as that, too.
        """


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradients for these parameters inside the block: neither computed nor kept for."""
    parameters = [p for p in parameters if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
