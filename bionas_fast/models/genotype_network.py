"""The network that a genotype stands for, to be trained from scratch (DARTS, section 3.2)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.errors import InputError
from bionas_fast.nn import Linear, connect_direct_feedback, name_layers
from bionas_fast.runtime import distributed
from bionas_fast.space import Genotype
from bionas_fast.space.cells import CellNetwork, PreprocessedCell
from bionas_fast.space.operations import Skip, convolution


class FoundCell(PreprocessedCell):
    """A cell of a genotype."""

    def __init__(
        self,
        genotype: Genotype,
        in_channels: tuple[int, ...],
        channels: int,
        reduction: bool,
        previous_reduction: bool,
        rule: str,
        affine: bool,
    ) -> None:
        super().__init__(genotype.skeleton, in_channels, channels, reduction, previous_reduction, rule, affine)
        found = genotype.cells[self.kind]
        self.concat = found.concat
        self.sources = [[edge.source for edge in edges] for edges in found.nodes]
        self.edges = nn.ModuleList(
            edge.candidate.build(channels, self.stride(edge.source), searching=False) for edge in found.edges
        )
        self.out_channels = channels * len(found.concat)

    def forward(self, *inputs: Any) -> Tensor:
        """Outputs of the preceding cells, and the chance to lose an edge (drop-path) → [N, out_channels, H', W']."""
        *outputs, drop_path = inputs
        states = self.first_states(outputs)
        edges = iter(self.edges)
        for sources in self.sources:
            outputs = []
            for source in sources:
                edge = next(edges)
                out = edge(states[source])
                outputs.append(out if isinstance(edge, Skip) else _drop(out, drop_path))
            states.append(sum(outputs[1:], outputs[0]) if outputs else torch.zeros_like(states[0]))
        return torch.cat([states[state] for state in self.concat], dim=1)


def _drop(x: Tensor, chance: float) -> Tensor:
    """Drop-path (Larsson et al. 2017): zero whole images of an edge, scale up the rest."""
    if not chance:
        return x
    kept = distributed.shard_of_draw(lambda count: x.new_empty(count, 1, 1, 1).bernoulli_(1 - chance), x.shape[0])
    return x * kept / (1 - chance)


class AuxiliaryHead(nn.Sequential):
    """A second classifier in the middle of the network, for any image size (Szegedy et al. 2015)."""

    def __init__(self, channels: int, num_classes: int, rule: str) -> None:
        super().__init__(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            convolution(channels, 128, 1, rule),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            convolution(128, 768, 2, rule),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            Linear(768, num_classes, rule=rule),
        )


class FoundNetwork(CellNetwork):
    """The network of a genotype; see :func:`build_network`.

    Attributes:
        drop_path: the chance, in training, that an edge loses an image; set it from epoch to epoch.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int,
        auxiliary: bool,
        drop_path: float,
    ) -> None:
        super().__init__(
            genotype.skeleton,
            partial(FoundCell, genotype),
            channels=channels,
            cells=cells,
            num_classes=num_classes,
            in_channels=in_channels,
            fixed=genotype.fixed,
            affine=True,
        )
        self.genotype = genotype
        if not 0 <= drop_path < 1:
            raise InputError(f"drop_path: expected 0 <= drop_path < 1, got {drop_path}")
        self.drop_path = drop_path
        self.auxiliary_index = 2 * len(self.cells) // 3
        width: Any = self.cells[self.auxiliary_index].out_channels
        self.auxiliary = AuxiliaryHead(width, num_classes, genotype.fixed["head"]) if auxiliary else None

    def forward(self, x: Tensor, drop_path: float = 0.0) -> Tensor | tuple[Tensor, Tensor]:
        """Images [N, in_channels, H, W] → logits [N, classes]; in training with an auxiliary head, both logits."""
        self._check_input(x)
        drop_path = drop_path if self.training else 0.0
        auxiliary = None
        for index, out in enumerate(self._outputs(x, lambda cell, inputs: cell(*inputs, drop_path))):
            if self.training and self.auxiliary is not None and index == self.auxiliary_index:
                auxiliary = self.auxiliary(out)
        logits = self._classify(out)
        return logits if auxiliary is None else (logits, auxiliary)


def build_network(
    genotype: Genotype,
    *,
    channels: int = 36,
    cells: int = 20,
    num_classes: int = 10,
    in_channels: int = 3,
    auxiliary: bool = False,
    drop_path: float = 0.0,
    seed: int = 0,
) -> FoundNetwork:
    """The network of a genotype, with fresh weights.

    Args:
        genotype: the cells and their learning rules.
        channels: C of the first cell; reductions double it.
        cells: L; reductions stand at ⌊L/3⌋ and ⌊2L/3⌋. For a genotype of NAS-Bench-201, the cells of each stage.
        auxiliary: a second classifier after two thirds of the cells, used in training only.
        drop_path: the chance, in training, that an edge loses an image.
        seed: of all weights and random feedback. PyTorch's own generator is left untouched.

    Returns:
        A network that maps images [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        InputError: a number out of range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FoundNetwork(
            genotype,
            channels=channels,
            cells=cells,
            num_classes=num_classes,
            in_channels=in_channels,
            auxiliary=auxiliary,
            drop_path=drop_path,
        )
    connect_direct_feedback(network, num_classes)
    name_layers(network)
    return network
