"""BioNAS-DARTS: architecture parameters by gradient descent (Liu et al. 2019; BioNAS, section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from bionas_fast.checkpoints import load_optimizer
from bionas_fast.data import BatchStream
from bionas_fast.nn import frozen_plasticity
from bionas_fast.search.config import SearchConfig
from bionas_fast.search.strategy import Strategy, frozen
from bionas_fast.supernet import Supernet


class Darts(Strategy):
    """First order: before every weight step, one Adam step of the alphas on a validation batch."""

    def __init__(self, net: Supernet, config: SearchConfig) -> None:
        super().__init__(net, config)
        self.optimizer = torch.optim.Adam(
            net.alpha_parameters(),
            config.alpha_learning_rate,
            betas=config.alpha_betas,
            weight_decay=config.alpha_weight_decay,
        )

    def before_weight_step(self, valid: BatchStream) -> None:
        x, y = next(valid)
        alphas = self.net.alpha_parameters()
        with frozen(self.net.weight_parameters()), frozen_plasticity(self.net):
            loss = F.cross_entropy(self.net(x), y)
            grads = torch.autograd.grad(loss, alphas, allow_unused=True)
        for alpha, grad in zip(alphas, grads, strict=True):
            alpha.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"], "strategy.optimizer")
