"""The attacked network: it takes images in [0, 1], and its gradient is that which the attacker may use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from bionas_fast.models import evaluate_fast
from bionas_fast.nn import next_draw, true_gradients


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network: that of its first parameter, or the CPU without any."""
    return next((own.device for own in network.parameters()), torch.device("cpu"))


class Victim(nn.Module):
    """A copy of a network in evaluation mode, for images in [0, 1]. The network itself is never changed.

    Args:
        network: maps normalised images [N, C, H, W] to logits [N, classes].
        mean, std: one value per channel, in units of [0, 1].
        gradient: ``feedback``, that by which the network learns, or ``true``, with W in place of B.
        eot: passes with newly drawn feedback whose logits are averaged, so that gradients are expectations over it
            (Athalye et al. 2018); 0: one pass, with the feedback as it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        *,
        gradient: Literal["feedback", "true"] = "feedback",
        eot: int = 0,
    ) -> None:
        super().__init__()
        # The gradient for the images is wanted, not those of the weights.
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        evaluate_fast(self.network)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.to(device_of(network))
        self.gradient, self.eot = gradient, eot
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [0, 1] to logits [N, classes]."""
        x = (images - self.mean) / self.std
        with true_gradients(self.network) if self.gradient == "true" else nullcontext():
            if not self.eot or not torch.is_grad_enabled():
                return self.network(x)
            total = self.network(x)
            for _ in range(self.eot - 1):
                next_draw(self.network)
                total = total + self.network(x)
            next_draw(self.network)
            return total / self.eot
