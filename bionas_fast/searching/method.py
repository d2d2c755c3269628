"""The interface of search methods, which update the architecture parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from bionas_fast.data import Stream
from bionas_fast.runtime.precision import Precision
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.robust import RobustTerm
from bionas_fast.space import Genotype
from bionas_fast.supernet import Mixing, Supernet

#: Settings of the mixture of candidates.
MIXING = ("factorised", "edge_normalisation", "auxiliary_skip")
#: Settings of robust search, for methods that evaluate individuals.
ROBUSTNESS = ("robustness", "robustness_eps", "robustness_weight")


class SearchMethod:
    """A search method. The search trains the weights and calls these hooks.

    A search may stop after any weight step and resume in another process, in the middle of an epoch. All state that a
    method carries between calls, including that of once-per-epoch work, therefore belongs in :meth:`state_dict`.

    Args:
        net: the supernet.
        config: the settings of the search, settled (:meth:`.SearchConfig.settled`).
        optimizer: the optimiser of the weights.
        precision: the precision of forward passes; by default float32.
        robustness: the term of robust search in the loss of an individual; by default none.

    Attributes:
        options: the method-specific settings that this method uses; all others must be left at their defaults.
        from_alphas: whether the genotype is derived from the alphas.
        divergence: the settings that make the alphas diverge when they are too large, the likeliest first.
        auxiliary_skip: the weight of the auxiliary skip connection in the current epoch.
        announce: called with what is done before longer work, for displays of the progress.
    """

    options: ClassVar[tuple[str, ...]] = ()
    from_alphas: ClassVar[bool] = True
    divergence: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        net: Supernet,
        config: SearchConfig,
        optimizer: torch.optim.Optimizer,
        precision: Precision | None = None,
        robustness: RobustTerm | None = None,
    ) -> None:
        self.net = net
        self.config = config
        self.optimizer = optimizer
        self.precision = precision or Precision()
        self.robustness = robustness or RobustTerm()
        self.epoch = 0
        self.auxiliary_skip = 0.0
        self.announce: Callable[[str], object] = lambda doing: None

    def capture(self, obstacle: str) -> None:
        """Hook before the first step.

        Args:
            obstacle: the reason why steps cannot be replayed as CUDA graphs; empty if they can.
        """

    def prepare(self, epoch: int) -> None:
        """Set the values that depend on the number of the epoch. Called whenever an epoch begins or is resumed."""
        self.epoch = epoch
        if self.config.auxiliary_skip:  # DARTS- (Chu et al. 2021): falls from 1 to 0
            self.auxiliary_skip = 1 - epoch / self.config.epochs

    @property
    def warming_up(self) -> bool:
        """Whether only the weights are trained, not yet the architecture."""
        return self.epoch < (self.config.warmup_epochs or 0)

    def before_epoch(self, valid: Stream) -> None:
        """Hook before the first weight step of an epoch."""

    def before_weight_step(self, x: Tensor, y: Tensor, valid: Stream) -> None:
        """Hook before the weight step on the batch x, y; may take batches from ``valid``."""

    def mixing(self) -> Mixing:
        """Return the mixing weights of the next training pass."""
        return self.net.architecture.mixing(auxiliary_skip=self.auxiliary_skip)

    def evaluation_mixing(self) -> Mixing:
        """Return the mixing weights under which the supernet is evaluated after an epoch."""
        return self.net.architecture.mixing(auxiliary_skip=self.auxiliary_skip)

    def genotype(self) -> Genotype:
        """Return the architecture that the search would end with now."""
        return self.net.genotype()

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            InputError: the state does not fit. KeyError, TypeError, ValueError and RuntimeError count as the same.
        """
