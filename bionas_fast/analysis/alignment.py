"""Alignment of the feedback of layers with their weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bionas_fast import rules
from bionas_fast.analysis.layers import weight_layers
from bionas_fast.nn import FeedbackLayer


@dataclass(frozen=True)
class Alignment:
    """The feedback B of a layer beside its weights W.

    Attributes:
        name: name of the layer.
        rule: its learning rule.
        angle: angle between B and W, in degrees (Lillicrap et al. 2016); 0 under ``bp``.
        norm_ratio: ‖B‖ / ‖W‖.
    """

    name: str
    rule: str
    angle: float
    norm_ratio: float


def measure_alignment(network: nn.Module) -> tuple[Alignment, ...]:
    """Measure the alignment of every layer whose feedback has the shape of its weights, unlike direct feedback."""
    return tuple(
        Alignment(name, rule, layer.feedback_angle(), layer.feedback_norm_ratio())
        for name, rule, layer in weight_layers(network)
        if isinstance(layer, FeedbackLayer) and rules.get(rule).mode != "direct"
    )
