"""Distributions of weights, layer by layer and rule by rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bionas_fast.analysis.layers import weight_layers


@dataclass(frozen=True, eq=False)
class WeightDistribution:
    """The distribution of the weights of a layer, or of all layers with a rule.

    Attributes:
        name: name of the layer, or the rule.
        rule: the learning rule.
        count: number of weights.
        mean, sigma: mean and standard deviation (of the population).
        kurtosis: excess kurtosis, 0 for a normal distribution; NaN without spread.
        edges: float64 [bins + 1], the edges of the histogram.
        density: float64 [bins], its density.
    """

    name: str
    rule: str
    count: int
    mean: float
    sigma: float
    kurtosis: float
    edges: Tensor
    density: Tensor

    @classmethod
    def of(cls, name: str, rule: str, weights: Tensor, bins: int = 64) -> WeightDistribution:
        """Summarise weights of any shape."""
        flat = weights.detach().double().flatten().cpu()
        centred = flat - flat.mean()
        variance = float(centred.square().mean())
        fourth = float(centred.pow(4).mean())
        density, edges = torch.histogram(flat, bins=bins, density=True)
        kurtosis = fourth / variance**2 - 3 if variance else math.nan
        return cls(name, rule, len(flat), float(flat.mean()), math.sqrt(variance), kurtosis, edges, density)


def measure_weights(network: nn.Module, *, by_rule: bool = False, bins: int = 64) -> tuple[WeightDistribution, ...]:
    """Summarise the weight matrices of a network.

    Args:
        network: any network.
        by_rule: take all layers with a rule together.
        bins: number of bins of the histograms.
    """
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for name, rule, layer in weight_layers(network):
        groups.setdefault((rule if by_rule else name, rule), []).append(
            layer.get_parameter("weight").detach().flatten().cpu()
        )
    return tuple(WeightDistribution.of(name, rule, torch.cat(own), bins) for (name, rule), own in groups.items())
