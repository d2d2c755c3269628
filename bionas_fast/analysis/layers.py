"""The layers that an analysis looks at: those with a weight matrix, by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from bionas_fast.nn.shares import group_of, layers_with_weights


def weight_layers(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Iterate over (name, rule, layer) of the layers whose ``weight`` has two or more dimensions and is trained.

    Layers without a rule learn by ``bp``. The auxiliary head, ``network.auxiliary``, is left out.
    """
    for name, layer, _ in layers_with_weights(network):
        weight = getattr(layer, "weight", None)
        if name.split(".")[0] == "auxiliary" or not isinstance(weight, nn.Parameter):
            continue
        if weight.dim() > 1 and weight.requires_grad:
            yield name, group_of(layer), layer
