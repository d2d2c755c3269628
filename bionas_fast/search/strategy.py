"""What a search method adds to the loop: when and how the architecture parameters move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bionas_fast.data import BatchStream
from bionas_fast.search.config import SearchConfig
from bionas_fast.space import Genotype
from bionas_fast.supernet import Supernet


class Strategy:
    """A search method. The loop trains the weights and calls these.

    A search may be stopped after any weight step and go on in another process, in the middle of an epoch. So whatever a
    method keeps from one call to a later one, what it does once an epoch included, belongs into :meth:`state_dict`.
    """

    def __init__(self, net: Supernet, config: SearchConfig) -> None:
        self.net = net

    def before_epoch(self, epoch: int, valid: BatchStream) -> None:
        """Called before the first weight step of an epoch."""

    def before_weight_step(self, valid: BatchStream) -> None:
        """Called before every weight step; takes what batches it needs from ``valid``."""

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
