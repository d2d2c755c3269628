"""Plain networks, sequences of layers without connections around them: perceptrons and small convolutional networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.choices import Plain
from bionas_fast.errors import InputError, expect_count, unknown
from bionas_fast.nn import convert, name_layers
from bionas_fast.runtime.isolation import seeded

PLAIN = get_args(Plain)
#: Hidden units or channels of each layer, unless they are given.
WIDTHS = {"mlp": (512, 512), "cnn": (32, 64)}


def _layers(name: str, widths: Sequence[int], in_channels: int, image_size: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Build the hidden layers of a network; return them and the number of their outputs per image, once flattened."""
    if name not in PLAIN:
        raise unknown("network", name, PLAIN)
    for width in widths:
        expect_count("widths", width)
    layers: list[nn.Module] = []
    if name == "mlp":
        size = in_channels * image_size[0] * image_size[1]
        layers.append(nn.Flatten())
        for width in widths:
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        return nn.Sequential(*layers), size
    channels, sides = in_channels, tuple(image_size)
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, sides = width, tuple(side // 2 for side in sides)
    if not all(sides):
        raise InputError(f"widths: images of {image_size[0]}×{image_size[1]} are too small for {len(widths)} layers")
    return nn.Sequential(*layers, nn.Flatten()), channels * sides[0] * sides[1]


def build_plain(
    name: str = "mlp",
    *,
    widths: Sequence[int] = (),
    rule: str | rules.Rule = "bp",
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: Sequence[int] = (28, 28),
    seed: int = 0,
) -> nn.Sequential:
    """Build a plain network with one learning rule on every layer.

    Args:
        name: ``mlp``, linear layers and ReLU; or ``cnn``, 3×3 convolutions, ReLU and 2×2 max pooling, and a linear
            layer.
        widths: the number of units or channels of each hidden layer; by default (512, 512) and (32, 64).
        rule: the learning rule of every layer.
        num_classes: number of logits.
        in_channels, image_size: the size of the images.
        seed: seed of all weights and random feedback; the state of PyTorch's generator is restored.

    Returns:
        A network that maps images [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        InputError: an unknown name or rule; a number below 1; images that are too small.
    """
    expect_count("num_classes", num_classes)
    with seeded(seed):
        hidden, size = _layers(name, widths or WIDTHS.get(name, ()), in_channels, image_size)
        network = nn.Sequential(*hidden, nn.Linear(size, num_classes))
        convert(network, rule, num_classes=num_classes, seed=seed, inplace=True)
    name_layers(network)
    return network


class ForwardForwardNetwork(nn.Module):
    """A network for the forward-forward algorithm (Hinton 2022): it says how well an image and a class fit.

    The class is part of the input: one-hot numbers behind the pixels of an ``mlp``, one-hot channels of a ``cnn``.
    Each layer reads the output of the layer below divided by its root mean square, so that nothing but its direction
    passes on. The goodness of a layer is the mean square of its outputs.

    Args:
        name, widths, num_classes, in_channels, image_size, seed: see :func:`build_plain`; there is no layer of logits.
    """

    def __init__(
        self,
        name: str = "mlp",
        *,
        widths: Sequence[int] = (),
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: Sequence[int] = (28, 28),
        seed: int = 0,
    ) -> None:
        super().__init__()
        expect_count("num_classes", num_classes)
        self.num_classes = num_classes
        extra = num_classes if name == "cnn" else 0
        with seeded(seed):
            hidden, _ = _layers(name, widths or WIDTHS.get(name, ()), in_channels + extra, image_size)
            if name == "mlp":
                first = hidden[1]
                assert isinstance(first, nn.Linear)
                hidden[1] = nn.Linear(first.in_features + num_classes, first.out_features)
        self.layers = nn.ModuleList(m for m in hidden if isinstance(m, (nn.Linear, nn.Conv2d)))
        for layer in self.layers:
            cast("Any", layer).learns_by = "forward-forward"

    def goodness(self, images: Tensor, classes: Tensor, *, local: bool = False) -> list[Tensor]:
        """Compute the goodness of each layer for images and classes, [N] each.

        Args:
            images: [N, C, H, W].
            classes: int64 [N].
            local: whether the input of each layer is detached.
        """
        onehot = (classes[:, None] == torch.arange(self.num_classes, device=classes.device)).to(images.dtype)
        if isinstance(self.layers[0], nn.Linear):
            x = torch.cat([images.flatten(1), onehot], dim=1)
        else:
            planes = onehot[:, :, None, None].expand(-1, -1, *images.shape[2:])
            x = torch.cat([images, planes], dim=1)
        found = []
        for index, layer in enumerate(self.layers):
            if index:
                x = F.max_pool2d(x, 2) if x.dim() == 4 else x
                rows = x.flatten(1)
                x = (F.normalize(rows, dim=1) * math.sqrt(rows.shape[1])).view_as(x)
            x = F.relu(layer(x.detach() if local else x))
            found.append(x.flatten(1).square().mean(dim=1))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Compute the goodness of images [N, C, H, W] with each class: [N, num_classes], summed over the layers.

        The first layer is left out if there are others.
        """
        columns = []
        for number in range(self.num_classes):
            classes = torch.full(images.shape[:1], number, device=images.device)
            own = self.goodness(images, classes)
            columns.append(torch.stack(own[1:] or own).sum(dim=0))
        return torch.stack(columns, dim=1)
