"""Distributions of weights, layer by layer and rule by rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bionas_fast.analysis.layers import weight_layers

#: What the weights of a distribution have in common.
Grouping = Literal["layer", "rule", "network"]
#: The name, and the rule, of the distribution of all weights.
ALL = "all"
#: A weight with a smaller magnitude is near zero.
NEAR = 0.01


@dataclass(frozen=True, eq=False)
class WeightDistribution:
    """The distribution of the weights of a layer, of all layers with a rule, or of all layers.

    Attributes:
        name: name of the layer, the rule, or ``all``.
        rule: the learning rule, or ``all``.
        count: number of weights.
        mean, sigma: mean and standard deviation (of the population).
        kurtosis: excess kurtosis, 0 for a normal distribution; NaN without spread.
        near_zero: the share of the weights with |w| < 0.01.
        edges: float64 [bins + 1], the edges of the histogram.
        density: float64 [bins], its density.
    """

    name: str
    rule: str
    count: int
    mean: float
    sigma: float
    kurtosis: float
    near_zero: float
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
        near = float((flat.abs() < NEAR).double().mean())
        return cls(name, rule, len(flat), float(flat.mean()), math.sqrt(variance), kurtosis, near, edges, density)


def measure_weights(network: nn.Module, *, by: Grouping = "layer", bins: int = 64) -> tuple[WeightDistribution, ...]:
    """Summarise the weight matrices of a network.

    Args:
        network: any network.
        by: take each ``layer`` alone, all layers with a ``rule`` together, or those of the ``network``.
        bins: number of bins of the histograms.
    """
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for name, rule, layer in weight_layers(network):
        key = {"layer": (name, rule), "rule": (rule, rule), "network": (ALL, ALL)}[by]
        groups.setdefault(key, []).append(layer.get_parameter("weight").detach().flatten().cpu())
    return tuple(WeightDistribution.of(name, rule, torch.cat(own), bins) for (name, rule), own in groups.items())
