"""An operation of your own as a candidate of a search: ``python examples/custom_operation.py``."""

from __future__ import annotations

import tempfile

import torch

import bionas_fast as bf
from bionas_fast.space import Candidate, Space, register_operation, register_space


@register_operation("bottleneck")
def bottleneck(channels, stride, rule, searching):
    """ReLU, 1×1 to half of the channels, 3×3 back to all of them, batch normalisation."""
    inner = max(1, channels // 2)
    return torch.nn.Sequential(
        torch.nn.ReLU(),
        bf.nn.Conv2d(channels, inner, 1, bias=False, rule=rule, feedback_init="xavier"),
        bf.nn.Conv2d(inner, channels, 3, stride=stride, padding=1, bias=False, rule=rule, feedback_init="xavier"),
        torch.nn.BatchNorm2d(channels, affine=not searching),
    )


@register_space("bottlenecks")
def bottlenecks():
    """Bottlenecks beside a skip connection and a pool."""
    return Space(
        "bottlenecks",
        (
            Candidate("bottleneck", "usf"),
            Candidate("bottleneck", "brsf"),
            Candidate("skip_connect", "usf"),
            Candidate("max_pool_3x3", None),
        ),
    )


def main() -> None:
    config = bf.SearchConfig(space="bottlenecks", channels=2, epochs=1, batch_size=128)
    with tempfile.TemporaryDirectory() as folder:
        result = bf.search(config, out=f"{folder}/search")
    print(result.genotype.to_json())

    network = bf.build_network(result.genotype, channels=4, cells=3, in_channels=1, num_classes=10)
    used = sum(isinstance(module, bf.nn.Conv2d) for module in network.modules())
    print(f"{used} convolutions with a rule, logits {tuple(network(torch.rand(2, 1, 8, 8)).shape)}")


if __name__ == "__main__":
    main()
