"""Networks built from genotypes, trained from scratch (DARTS, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.errors import InputError
from bionas_fast.nn import FeedbackLayer, Linear, connect_direct_feedback, name_layers
from bionas_fast.nn.leaf import leaf
from bionas_fast.runtime import distributed
from bionas_fast.runtime.isolation import seeded
from bionas_fast.space import Genotype
from bionas_fast.space.cells import CellNetwork, CellShape, NetworkShape, PreprocessedCell, Stem
from bionas_fast.space.operations import Initialisation, Skip, convolution, initialised


class GenotypeCell(PreprocessedCell):
    """A cell of a genotype."""

    def __init__(self, genotype: Genotype, shape: CellShape) -> None:
        super().__init__(genotype.skeleton, shape)
        cell = genotype.cells[self.kind]
        self.concat = cell.concat
        self.sources = [[edge.source for edge in edges] for edges in cell.nodes]
        self.edges = nn.ModuleList(
            edge.candidate.build(shape.channels, self.stride(edge.source), searching=False) for edge in cell.edges
        )
        self.out_channels = shape.channels * len(cell.concat)
        self._share_direct_feedback()

    def _share_direct_feedback(self) -> None:
        """Count the layers with direct feedback on the edges from each state: without a scale, their errors add up."""
        by_source: dict[int, list[FeedbackLayer]] = {}
        sources = [source for node in self.sources for source in node]
        for source, edge in zip(sources, self.edges, strict=True):
            layers = (layer for layer in edge.modules() if isinstance(layer, FeedbackLayer))
            by_source.setdefault(source, []).extend(
                layer for layer in layers if rules.get(layer.rule).stores == "direct"
            )
        for meeting in by_source.values():
            for layer in meeting:
                layer.meeting = len(meeting)

    def forward(self, inputs: Sequence[Tensor], drop_path: float) -> Tensor:
        """Compute the output of the cell, [N, out_channels, H', W'], from those of the preceding cells.

        Args:
            inputs: outputs of the preceding cells, [N, C_in, H, W] each, the older first.
            drop_path: probability that the output of an edge is zeroed for an image.
        """
        states = self.preprocess(inputs)
        edges = iter(self.edges)
        for sources in self.sources:
            outputs = []
            for source in sources:
                edge = next(edges)
                out = edge(states[source])
                outputs.append(out if isinstance(edge, Skip) else _drop(out, drop_path))
            states.append(sum(outputs[1:], outputs[0]) if outputs else torch.zeros_like(states[0]))
        return torch.cat([states[state] for state in self.concat], dim=1)


def _drop(x: Tensor, probability: float) -> Tensor:
    """Apply drop-path (Larsson et al. 2017): zero the output of an edge for random images, rescale the others."""
    if not probability:
        return x
    mask = distributed.shard_of_draw(lambda n: x.new_empty(n, 1, 1, 1).bernoulli_(1 - probability), x.shape[0])
    return x * mask / (1 - probability)


class CornerPool(nn.Module):
    """Average pooling to 2×2: windows of 5×5 in the corners of a map of 6 to 10 positions a side, otherwise quarters.

    On 8×8 maps this is DARTS's pooling of stride 3, on ImageNet's 7×7 maps the one of stride 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return leaf(self, x)
        strides = [size - 5 for size in x.shape[-2:]]
        if all(1 <= stride <= 5 for stride in strides):
            return F.avg_pool2d(x, 5, strides)
        return F.adaptive_avg_pool2d(x, 2)


class AuxiliaryHead(nn.Sequential):
    """A second classifier in the middle of the network, for any image size (Szegedy et al. 2015; Liu et al. 2019).

    Args:
        imagenet: DARTS's variant for ImageNet, without the second batch normalisation.
    """

    def __init__(self, channels: int, num_classes: int, rule: str, *, imagenet: bool = False) -> None:
        super().__init__(
            nn.ReLU(),
            CornerPool(),
            convolution(channels, 128, 1, rule),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            convolution(128, 768, 2, rule),
            nn.Identity() if imagenet else nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            Linear(768, num_classes, rule=rule),
        )


class GenotypeNetwork(CellNetwork):
    """A network built from a genotype; see :func:`build_network`.

    Attributes:
        drop_path: drop-path probability in training, unless :meth:`forward` is called with another; at first 0.
    """

    def __init__(self, genotype: Genotype, shape: NetworkShape, *, auxiliary: bool) -> None:
        super().__init__(genotype.skeleton, shape, partial(GenotypeCell, genotype))
        self.genotype = genotype
        self.drop_path = 0.0
        self.auxiliary_index = 2 * len(self.cells) // 3
        width = cast("PreprocessedCell", self.cells[self.auxiliary_index]).out_channels
        head = partial(AuxiliaryHead, width, shape.num_classes, genotype.fixed["head"])
        with initialised(shape.initialisation):
            self.auxiliary = head(imagenet=shape.stem == "imagenet") if auxiliary else None

    def forward(self, x: Tensor, drop_path: float | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compute logits [N, classes] from images [N, in_channels, H, W]; in training, also those of an auxiliary head.

        Args:
            drop_path: drop-path probability in training, 0 ≤ p < 1; by default the attribute.
        """
        inputs = self._begin(x)
        symbolic = isinstance(drop_path, Proxy)
        probability = _checked(self.drop_path if drop_path is None or symbolic else drop_path)
        if not self.training:
            probability = 0.0
        auxiliary = None
        for index, cell in enumerate(self.cells):
            out = cell(inputs, probability) if isinstance(cell, GenotypeCell) else cell(inputs[-1])
            inputs = [*inputs[1:], out]
            if self.training and self.auxiliary is not None and index == self.auxiliary_index:
                auxiliary = self.auxiliary(out)
        logits = self._classify(inputs[-1])
        return logits if auxiliary is None else (logits, auxiliary)


def _checked(drop_path: float) -> float:
    if not 0 <= drop_path < 1:
        raise InputError(f"drop_path: expected 0 <= drop_path < 1, got {drop_path}")
    return drop_path


@dataclass(frozen=True)
class NetworkOptions:
    """Options of a genotype network that few trainings change.

    Attributes:
        stem: ``cifar`` for small images; ``imagenet`` reduces the images eightfold before the first cell.
        initialisation: ``xavier``, in every convolution (the paper), or ``published``, only in those with a rule other
            than ``bp`` (the code published with the paper); other weights have PyTorch's law.
    """

    stem: Stem = "cifar"
    initialisation: Initialisation = "xavier"


def build_network(
    genotype: Genotype,
    *,
    channels: int = 36,
    cells: int = 20,
    num_classes: int = 10,
    in_channels: int = 3,
    auxiliary: bool = False,
    seed: int = 0,
    options: NetworkOptions | None = None,
) -> GenotypeNetwork:
    """Build the network of a genotype with fresh weights.

    Args:
        genotype: the cells and their learning rules.
        channels: C of the first cell; reductions double it.
        cells: L, with reductions at ⌊L/3⌋ and ⌊2L/3⌋; for NAS-Bench-201, the number of cells per stage.
        num_classes: number of logits.
        in_channels: channels of the images.
        auxiliary: whether to add a second classifier after two thirds of the cells, used in training only.
        seed: seed of all weights and random feedback; the state of PyTorch's generator is restored.
        options: the stem and the law of initial weights.

    Returns:
        A network that maps images [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        InputError: a number out of range; an unknown stem or initialisation, or ImageNet's for NAS-Bench-201.
    """
    options, fixed = options or NetworkOptions(), genotype.fixed
    shape = NetworkShape(channels, cells, num_classes, in_channels, fixed, True, options.stem, options.initialisation)
    with seeded(seed):
        network = GenotypeNetwork(genotype, shape, auxiliary=auxiliary)
    connect_direct_feedback(network, num_classes)
    name_layers(network)
    return network
