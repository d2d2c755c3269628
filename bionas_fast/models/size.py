"""The size of networks: weights, multiply-adds, and the shares of the weights by the rule they learn by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bionas_fast.nn.shares import count_weights


@dataclass(frozen=True)
class NetworkSize:
    """The size of a network.

    Attributes:
        weights: number of weights by the rule they learn by, the largest first, as of
            :func:`bionas_fast.nn.count_weights`; without the auxiliary head, which is not used after training.
        auxiliary: number of weights of the auxiliary head; 0 without one.
        operations: multiply-adds of convolutions and matrix products for one image.
    """

    weights: Mapping[str, int]
    auxiliary: int
    operations: int

    @property
    def parameters(self) -> int:
        """The number of weights, without the auxiliary head."""
        return sum(self.weights.values())

    @property
    def shares(self) -> dict[str, float]:
        """The share of the weights that learn by each rule."""
        return {rule: count / self.parameters for rule, count in self.weights.items()}

    @property
    def count(self) -> str:
        """The multiply-adds for people: in millions, from one million on."""
        return f"{self.operations:,}" if self.operations < 1e6 else f"{self.operations / 1e6:,.1f} M"

    def lines(self) -> dict[str, str]:
        """Format the size as names and values for people."""
        head = f" (and {self.auxiliary:,} of the auxiliary head)" if self.auxiliary else ""
        return {
            "parameters": f"{self.parameters:,}{head}",
            "multiply-adds": f"{self.count} per image",
            "weights by rule": ", ".join(f"{rule} {100 * share:.1f} %" for rule, share in self.shares.items()),
        }


def measure_size(network: nn.Module, image: Sequence[int]) -> NetworkSize:
    """Measure the size of a network, by a forward pass in evaluation mode; the mode is restored.

    Args:
        network: maps images [N, C, H, W] to logits; its ``auxiliary`` is an auxiliary head, if it has one.
        image: [C, H, W], the size of an image.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    weights = weights_by_rule(network)
    auxiliary = sum(count_weights(network).values()) - sum(weights.values())
    training, example = network.training, next(network.parameters())
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network.eval()(example.new_zeros(1, *image))
    finally:
        network.train(training)
    return NetworkSize(weights, auxiliary, counter.get_total_flops() // 2)


def weights_by_rule(network: nn.Module) -> dict[str, int]:
    """Count the weights by the rule they learn by, the largest first, without those of the auxiliary head.

    Args:
        network: its ``auxiliary`` is an auxiliary head, if it has one.
    """
    head = getattr(network, "auxiliary", None)
    auxiliary = count_weights(head) if isinstance(head, nn.Module) else {}
    own = {rule: count - auxiliary.get(rule, 0) for rule, count in count_weights(network).items()}
    return dict(sorted(((rule, count) for rule, count in own.items() if count), key=lambda item: -item[1]))
