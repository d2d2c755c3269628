"""SoftHebb networks (Journé et al. 2023): convolutions that learn by soft competition, without labels; a linear head.

A block is BN without affine parameters, a Hebbian convolution with reflected borders, the triangle activation, a pool.
The same blocks learn by Hebbian principal components (``hpca``, ``hpca_relu``), with ReLU; ``fasthebb`` is the network
that was published with them (Lagani et al. 2022), whose blocks end with BN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from bionas_fast.errors import InputError, expect_count, unknown
from bionas_fast.nn import HebbianConv2d, Linear, Triangle, name_layers
from bionas_fast.runtime.isolation import seeded

#: Initial ‖W_k‖ of the filters; under the adaptive rate it decreases to 1.
INITIAL_NORM = 25.0
#: Rules by which filters, which begin with norm 1, approach the principal components of their inputs.
COMPONENTS = ("hpca", "hpca_relu")
#: The kernel size of a block whose filters cover the whole map.
WHOLE = 0
#: The pools, all of stride 2, and the least size of a map that they accept.
_POOLS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "max": (partial(nn.MaxPool2d, 4, 2, 1), 2),
    "max2": (partial(nn.MaxPool2d, 2), 2),
    "avg": (partial(nn.AvgPool2d, 2), 2),
    "none": (nn.Identity, 1),
}


class Block(NamedTuple):
    """A block of a SoftHebb network.

    Attributes:
        filters, kernel_size: parameters of the convolution; a kernel of size :data:`WHOLE` covers the map.
        temperature: temperature of the competition.
        power: power of the triangle activation.
        rate: learning rate η of the convolution under a competition.
        pool: ``max`` of 4×4, ``max2`` or ``avg`` of 2×2 positions, stride 2, or ``none``.
        component_rate: learning rate of principal components.
        padded: whether the convolution has reflected borders, by which it keeps the size of the map.
        normalised: what is normalised: the ``input`` of the convolution, or the ``output`` of the block.
    """

    filters: int
    kernel_size: int
    temperature: float
    power: float
    rate: float
    pool: str
    component_rate: float = 0.01
    padded: bool = True
    normalised: str = "input"


def _fasthebb(filters: int, kernel_size: int, pool: str) -> Block:
    return Block(filters, kernel_size, 1.0, 1.0, 0.01, pool, 1e-3, padded=False, normalised="output")


ARCHITECTURES = {
    # Published for CIFAR-10.
    "cifar10": (
        Block(96, 5, 1.0, 0.7, 0.08, "max"),
        Block(384, 3, 0.65, 1.4, 0.005, "max"),
        Block(1536, 3, 0.25, 1.0, 0.01, "avg"),
    ),
    # Published for ImageNet's images at 160×160 and STL-10; there, the exponent of the adaptive rate is 0.75.
    "imagenette": (
        Block(48, 5, 1.1, 0.7, 0.08, "max"),
        Block(192, 3, 0.7, 0.7, 0.01, "max"),
        Block(768, 3, 0.5, 0.7, 0.01, "max"),
        Block(3072, 3, 0.4, 1.4, 0.01, "max"),
        Block(12288, 3, 0.25, 1.0, 0.01, "avg"),
    ),
    # Published with FastHebb for images of 32×32: four convolutions and a wide layer, before the linear one.
    "fasthebb": (
        _fasthebb(96, 5, "max2"),
        _fasthebb(128, 3, "none"),
        _fasthebb(192, 3, "max2"),
        _fasthebb(256, 3, "none"),
        _fasthebb(4096, WHOLE, "none"),
    ),
    # Small, for images such as those of MNIST.
    "mnist": (
        Block(32, 5, 1.0, 0.7, 0.08, "max"),
        Block(128, 3, 0.65, 1.4, 0.005, "max"),
    ),
    # Tuned on Fashion-MNIST: large filters and a small power in the first block, where learning matters most.
    "fashion-mnist": (
        Block(32, 7, 1.0, 0.3, 0.015, "max"),
        Block(64, 3, 0.3, 1.4, 0.002, "avg"),
    ),
}


class Scale(nn.Module):
    """Division by ``size``, a scalar buffer."""

    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.size


class SoftHebbNetwork(nn.Module):
    """A SoftHebb network; see :func:`build_softhebb`.

    Attributes:
        blocks: the convolutional blocks; in training mode, each forward pass updates their filters.
        head: flattening, a scale, dropout and a linear layer.
    """

    def __init__(
        self,
        architecture: tuple[Block, ...],
        *,
        rule: str,
        in_channels: int,
        image_size: Sequence[int],
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        sizes = _map_sizes(architecture, image_size)
        self.blocks = nn.ModuleList()
        channels, components = in_channels, rule in COMPONENTS
        for block, size in zip(architecture, sizes, strict=True):
            convolution = HebbianConv2d(
                channels,
                block.filters,
                block.kernel_size or size,
                padding=block.kernel_size // 2 if block.padded else 0,
                padding_mode="reflect" if block.padded else "zeros",
                rule=rule,
                rate=block.component_rate if components else block.rate,
                adaptive=not components,
                temperature=block.temperature,
                normalisation="none" if components else "max",
                norm=1.0 if components else INITIAL_NORM,
            )
            activation = nn.ReLU() if components else Triangle(block.power)
            layers = [convolution, activation, _POOLS[block.pool][0]()]
            first = block.normalised == "input"
            layers.insert(0 if first else 3, nn.BatchNorm2d(channels if first else block.filters, affine=False))
            self.blocks.append(nn.Sequential(*layers))
            channels = block.filters
        with torch.no_grad():
            shape = self.eval().features(torch.zeros(1, in_channels, *image_size)).shape
        self.train()
        self.head = nn.Sequential(nn.Flatten(), Scale(), nn.Dropout(dropout), Linear(shape[1:].numel(), num_classes))

    def features(self, x: Tensor) -> Tensor:
        """Compute the features of images [N, C, H, W], before flattening."""
        for block in self.blocks:
            x = block(x)
        return x

    @property
    def scale(self) -> Scale:
        """The scale before the linear layer of the head."""
        return cast("Scale", self.head[1])

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, classes] from images [N, C, H, W]."""
        return self.head(self.features(x))


def _map_sizes(architecture: Sequence[Block], image_size: Sequence[int]) -> list[tuple[int, int]]:
    """Compute height and width of the input of every block.

    Raises:
        InputError: a map is smaller than a kernel or a pool, or not larger than the reflected borders.
    """
    sizes, (height, width) = [], image_size
    for block in architecture:
        sizes.append((height, width))
        least = max(block.kernel_size // 2, 1) + 1 if block.padded else block.kernel_size or 1
        lost = 0 if block.padded else block.kernel_size - 1
        after = (1, 1) if block.kernel_size == WHOLE else (height - lost, width - lost)
        if min(height, width) < least or min(after) < _POOLS[block.pool][1]:
            raise InputError(f"image_size: {image_size[0]}×{image_size[1]} is too small for {len(architecture)} blocks")
        height, width = after if block.pool == "none" else (after[0] // 2, after[1] // 2)
    return sizes


def build_softhebb(
    architecture: str = "cifar10",
    *,
    rule: str = "softhebb",
    in_channels: int = 3,
    image_size: Sequence[int] = (32, 32),
    num_classes: int = 10,
    dropout: float = 0.5,
    seed: int = 0,
) -> SoftHebbNetwork:
    """Build a SoftHebb network with fresh weights.

    Args:
        architecture: ``cifar10`` (96, 384 and 1536 filters), ``imagenette`` (48, 192, 768, 3072 and 12288: 350 million
            weights), ``mnist`` (32 and 128), ``fashion-mnist`` (32 and 64) or ``fasthebb`` (96, 128, 192, 256 and
            4096, with ``hpca_relu``).
        rule: Hebbian rule of the convolutions; see :func:`bionas_fast.functional.hebbian_activity`.
        in_channels: channels of the images.
        image_size: height and width of the images, which determine the size of the head.
        num_classes: number of logits.
        dropout: dropout probability before the linear head.
        seed: seed of all weights; the state of PyTorch's generator is restored.

    Raises:
        InputError: an unknown architecture or rule; a number out of range; images that are too small.
    """
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        expect_count(name, value)
    with seeded(seed):
        network = SoftHebbNetwork(
            ARCHITECTURES[architecture],
            rule=rule,
            in_channels=in_channels,
            image_size=image_size,
            num_classes=num_classes,
            dropout=dropout,
        )
    name_layers(network)
    return network
