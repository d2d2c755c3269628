"""The supernet as both engines share it: cells in a chain, architecture parameters, the genotype that they encode."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from bionas_fast.errors import InputError
from bionas_fast.space import Candidate, Genotype, Space
from bionas_fast.space.cells import CellNetwork, CellShape, NetworkShape, PreprocessedCell
from bionas_fast.supernet.architecture import Architecture, Mixing, Mixture


class SearchCell(PreprocessedCell):
    """A cell with every candidate on every edge; each node sums its edges.

    Args:
        space: its edges, and the candidates on each of them.
        partial_channels: k; the candidates see 1/k of the channels, see :class:`Mixture`.
    """

    def __init__(self, space: Space, partial_channels: int, shape: CellShape) -> None:
        super().__init__(space.skeleton, shape)
        self.space, self.partial_channels = space, partial_channels
        self.out_channels = len(space.output) * shape.channels

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor], mixing: Tensor) -> Tensor:
        """The outputs of the preceding cells → the output of this one, [N, out_channels, H', W'].

        Args:
            inputs: [N, C_in, H, W] each, the older first.
            mixing: the weight of every candidate on every edge, [edges, candidates].
        """


class Supernet(CellNetwork):
    """The supernet of a space; see :func:`bionas_fast.build_supernet`.

    Args:
        space: the cells that are searched.
        shape: the number of cells, their channels and so on.
        mixture: how the candidates are mixed.
        skip_rules: whether skip connections learn by their rule; else by back-propagation.

    Attributes:
        architecture: its parameters, part of ``state_dict``, not of :meth:`weight_parameters`.

    Raises:
        InputError: channels that ``partial_channels`` does not divide.
    """

    #: The engine's cells.
    cell_type: ClassVar[type[SearchCell]]

    def __init__(self, space: Space, shape: NetworkShape, mixture: Mixture, skip_rules: bool) -> None:
        if shape.channels % mixture.partial_channels:
            raise InputError(
                f"channels: expected a multiple of partial_channels {mixture.partial_channels}, got {shape.channels}"
            )
        candidates = space.candidates if skip_rules else without_skip_rules(space.candidates)
        run = replace(space, candidates=candidates)
        super().__init__(space.skeleton, shape, partial(self.cell_type, run, mixture.partial_channels))
        self.space, self.skip_rules = space, skip_rules
        self.architecture = Architecture(space, mixture)

    def forward(self, x: Tensor, mixing: Mixing | None = None) -> Tensor:
        """Images [N, in_channels, H, W] → logits [N, classes].

        Args:
            mixing: the weights of the candidates; by default those that the architecture parameters stand for.
        """
        inputs = self._begin(x)
        weights = self.architecture.mixing() if mixing is None else mixing
        for cell in self.cells:
            out = cell(inputs, weights[cell.kind]) if isinstance(cell, SearchCell) else cell(inputs[-1])
            inputs = [*inputs[1:], out]
        return self._classify(inputs[-1])

    @abstractmethod
    def population(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Logits [P, N, classes] of P individuals, each with mixing weights of its own.

        Args:
            x: images [N, in_channels, H, W].
            mixing: for each kind of cell [P, edges, candidates].

        Raises:
            InputError: in training mode, where an individual would move the statistics for the next.
        """

    def _check_population(self, mixing: Mixing) -> int:
        """The number of individuals, P."""
        if self.training:
            raise InputError("a population is evaluated with fixed weights and statistics: call eval() first")
        wanted = [len(self.space.edges), len(self.space.candidates)]
        for kind in self.space.kinds:
            if kind not in mixing or mixing[kind].dim() != 3 or list(mixing[kind].shape[1:]) != wanted:
                got = list(mixing[kind].shape) if kind in mixing else "nothing"
                raise InputError(f"mixing[{kind!r}]: expected [individuals, {wanted[0]}, {wanted[1]}], got {got}")
        return len(mixing[self.space.kinds[0]])

    @property
    def alphas(self) -> nn.ParameterDict:
        """One for each kind of cell, [edges, candidates]; see :class:`Architecture` for factorised ones."""
        return self.architecture.alphas

    def alpha_parameters(self) -> list[nn.Parameter]:
        """The architecture parameters."""
        return list(self.architecture.parameters())

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter but the architecture's."""
        own = {id(alpha) for alpha in self.architecture.parameters()}
        return (p for p in self.parameters() if id(p) not in own)

    @property
    def fixed(self) -> Mapping[str, str]:
        """The rules of stem, preprocess and head."""
        return self.shape.fixed

    def genotype(self) -> Genotype:
        """The discrete architecture that the present alphas stand for."""
        return self.architecture.genotype(self.fixed)


def without_skip_rules(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """The same candidates with skip connections trained by back-propagation, as the published code has them."""
    return tuple(Candidate(c.operation, "bp") if c.operation == "skip_connect" else c for c in candidates)
