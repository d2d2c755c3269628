"""Networks built from genotypes, trained from scratch (DARTS, section 3.2)."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.choices import Initialisation, Stem
from bionas_fast.errors import InputError, expect_type
from bionas_fast.models import planar
from bionas_fast.nn import FeedbackLayer, Linear, connect_direct_feedback, name_layers
from bionas_fast.nn.leaf import leaf
from bionas_fast.runtime import distributed
from bionas_fast.runtime.isolation import seeded
from bionas_fast.space import Genotype
from bionas_fast.space.cells import CellNetwork, CellShape, NetworkShape, PreprocessedCell
from bionas_fast.space.operations import Skip, convolution, initialised


class Paths(NamedTuple):
    """Drop-path in one pass through a cell (Larsson et al. 2017): edges are zeroed for random images.

    Attributes:
        masks: for each dropped edge, the images it is kept for, [N, 1, 1, 1].
        probability: that an image is dropped; the others are rescaled.
    """

    masks: dict[int, Tensor]
    probability: float

    def drop(self, edge: int, out: Tensor) -> Tensor:
        """Apply drop-path to the output of an edge."""
        return out * self.masks[edge] / (1 - self.probability) if edge in self.masks else out

    def factors(self, edges: Iterable[int]) -> Tensor | None:
        """Return the factors by which drop-path multiplies the outputs of edges, float32 [edges, N]; None for ones."""
        if not self.masks:
            return None
        return torch.stack([self.masks[edge].flatten() for edge in edges]).float() / (1 - self.probability)


class GenotypeCell(PreprocessedCell):
    """A cell of a genotype."""

    #: Whether the kernels of training also run in evaluation, whose outputs then differ by rounding.
    fast_evaluation: bool = False

    def __init__(self, genotype: Genotype, shape: CellShape) -> None:
        super().__init__(genotype.skeleton, shape)
        cell = genotype.cells[self.kind]
        self.concat = cell.concat
        #: The edges into each node, and those from each state.
        self.entering: list[list[int]] = []
        self.leaving: list[list[int]] = [[] for _ in range(self.inputs + len(cell.nodes))]
        for edges in cell.nodes:
            first = sum(map(len, self.entering))
            self.entering.append([*range(first, first + len(edges))])
            for index, edge in enumerate(edges, first):
                self.leaving[edge.source].append(index)
        self.edges = nn.ModuleList(
            edge.candidate.build(shape.channels, self.stride(edge.source), searching=False) for edge in cell.edges
        )
        self.out_channels = shape.channels * len(cell.concat)
        self._share_direct_feedback()

    def _share_direct_feedback(self) -> None:
        """Count the layers with direct feedback on the edges from each state: without a scale, their errors add up."""
        for indices in self.leaving:
            layers = [layer for index in indices for layer in self.edges[index].modules()]
            meeting = [m for m in layers if isinstance(m, FeedbackLayer) and rules.get(m.rule).mode == "direct"]
            for layer in meeting:
                layer.meeting = len(meeting)

    def forward(self, inputs: Sequence[Tensor], drop_path: float) -> Tensor:
        """Compute the output of the cell, [N, out_channels, H', W'], from those of the preceding cells.

        Args:
            inputs: outputs of the preceding cells, [N, C_in, H, W] each, the older first.
            drop_path: probability that the output of an edge is zeroed for an image.
        """
        states = self.preprocess(inputs)
        paths = self._draw_paths(states[0], drop_path)
        outputs: list[Tensor | None] = [None] * len(self.edges)
        for state in range(self.inputs + len(self.entering)):
            if state >= self.inputs:
                # No comprehension over a name of this function: torch.export cannot trace its closure.
                reached: list[Tensor] = []
                for edge in self.entering[state - self.inputs]:
                    out = outputs[edge]
                    if out is not None:
                        reached.append(out)
                states.append(sum(reached[1:], reached[0]) if reached else torch.zeros_like(states[0]))
            self._leave(states[state], state, outputs, paths)
        return torch.cat([states[state] for state in self.concat], dim=1)

    @property
    def _by_kernels(self) -> bool:
        # In evaluation the modules run, so that outputs are bit-identical to those of torch.nn's layers.
        return self.training or self.fast_evaluation

    def preprocess(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Map the inputs [N, C_in, H, W] to the channels and size of the cell; they are its first states."""
        modules = self.preprocessing
        if not (modules and self._by_kernels):
            return super().preprocess(inputs)
        return [planar.run_chain(module, x) for module, x in zip(modules, inputs, strict=True)]

    def _draw_paths(self, x: Tensor, probability: float) -> Paths:
        """Draw drop-path for every edge but the identities."""
        if not probability:
            return Paths({}, 0.0)

        def draw(n: int) -> Tensor:
            return x.new_empty(n, 1, 1, 1).bernoulli_(1 - probability)

        dropped = [index for index, edge in enumerate(self.edges) if not isinstance(edge, Skip)]
        return Paths({index: distributed.shard_of_draw(draw, x.shape[0]) for index in dropped}, probability)

    def _leave(self, x: Tensor, state: int, outputs: list[Tensor | None], paths: Paths) -> None:
        """Run all edges from a state: the chains of separable stages together, the others one by one."""
        edges = {index: self.edges[index] for index in self.leaving[state]}
        fits = self._by_kernels and planar.runs_planar(x)
        chains = planar.chains(edges) if fits else {}
        if chains:
            into = [self._other(index, chains, outputs) for index in chains]
            found = planar.run_chains(x, [*chains.values()], [base for _, base in into], paths.factors(chains))
            for index, (other, _), out in zip(chains, into, found, strict=True):
                outputs[index] = out
                if other is not None:
                    outputs[other] = None
        others = {index: edge for index, edge in edges.items() if index not in chains}
        each = planar.run_others(others, x) if fits else {index: edge(x) for index, edge in others.items()}
        for index, out in each.items():
            outputs[index] = paths.drop(index, out)

    def _other(
        self, index: int, running: Container[int], outputs: Sequence[Tensor | None]
    ) -> tuple[int | None, Tensor | None]:
        """Return the other edge of a node of two and its output, to add to; a sum of more keeps its order."""
        for edges in self.entering:
            if index in edges and len(edges) == 2:
                other = edges[0] + edges[1] - index
                if other not in running and outputs[other] is not None:
                    return other, outputs[other]
        return None, None


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


def evaluate_fast(network: nn.Module) -> None:
    """Let the genotype cells of a network run their training kernels in evaluation, too: equal but for rounding."""
    for module in network.modules():
        if isinstance(module, GenotypeCell):
            module.fast_evaluation = True


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
    expect_type("genotype", genotype, Genotype, "bf.Genotype.load(PATH) reads one")
    options, fixed = options or NetworkOptions(), genotype.fixed
    shape = NetworkShape(channels, cells, num_classes, in_channels, fixed, True, options.stem, options.initialisation)
    with seeded(seed):
        network = GenotypeNetwork(genotype, shape, auxiliary=auxiliary)
    connect_direct_feedback(network, num_classes)
    name_layers(network)
    return network
