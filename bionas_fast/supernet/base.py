"""The base of both engines of the supernet: a chain of cells, architecture parameters, and the derived genotype."""

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
        space: the space that defines the edges and their candidates.
        partial_channels: k; 1/k of the channels pass through the candidates, see :class:`Mixture`.
    """

    def __init__(self, space: Space, partial_channels: int, shape: CellShape) -> None:
        super().__init__(space.skeleton, shape)
        self.space, self.partial_channels = space, partial_channels
        self.out_channels = len(space.output) * shape.channels

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor], mixing: Tensor) -> Tensor:
        """Compute the output [N, out_channels, H', W'] from the outputs of the preceding cells.

        Args:
            inputs: [N, C_in, H, W] each, the older first.
            mixing: the weight of every candidate on every edge, [edges, candidates].
        """


class Supernet(CellNetwork):
    """The supernet of a space; see :func:`bionas_fast.build_supernet`.

    Args:
        space: the search space.
        shape: the number of cells, their channels and so on.
        mixture: how the candidates are mixed.
        skip_rules: whether skip connections learn by their rule; otherwise by back-propagation.

    Attributes:
        architecture: the architecture parameters, part of ``state_dict`` but not of :meth:`weight_parameters`.

    Raises:
        InputError: ``partial_channels`` does not divide the channels.
    """

    #: The type of the engine's cells.
    cell_type: ClassVar[type[SearchCell]]

    def __init__(self, space: Space, shape: NetworkShape, mixture: Mixture, skip_rules: bool) -> None:
        if shape.channels % mixture.partial_channels:
            raise InputError(
                f"channels: expected a multiple of partial_channels {mixture.partial_channels}, got {shape.channels}"
            )
        candidates = space.candidates if skip_rules else tuple(map(Candidate.without_skip_rule, space.candidates))
        run = replace(space, candidates=candidates)
        super().__init__(space.skeleton, shape, partial(self.cell_type, run, mixture.partial_channels))
        self.space, self.skip_rules = space, skip_rules
        self.architecture = Architecture(space, mixture)

    def forward(self, x: Tensor, mixing: Mixing | None = None) -> Tensor:
        """Compute logits [N, classes] from images [N, in_channels, H, W].

        Args:
            mixing: the weights of the candidates; by default those of the architecture parameters.
        """
        inputs = self._begin(x)
        weights = self.architecture.mixing() if mixing is None else mixing
        for cell in self.cells:
            out = cell(inputs, weights[cell.kind]) if isinstance(cell, SearchCell) else cell(inputs[-1])
            inputs = [*inputs[1:], out]
        return self._classify(inputs[-1])

    @abstractmethod
    def population(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Compute logits [P, N, classes] of P individuals, each with separate mixing weights.

        Args:
            x: images [N, in_channels, H, W].
            mixing: for each kind of cell [P, edges, candidates].

        Raises:
            InputError: in training mode, where an individual would update the statistics used by the next.
        """

    def _check_population(self, mixing: Mixing) -> int:
        """Check the mode and the shapes, and return the number of individuals P."""
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
        """The alphas by kind of cell, [edges, candidates]; see :class:`Architecture` for factorised ones."""
        return self.architecture.alphas

    def alpha_parameters(self) -> list[nn.Parameter]:
        """Return the architecture parameters."""
        return list(self.architecture.parameters())

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters except those of the architecture."""
        own = {id(alpha) for alpha in self.architecture.parameters()}
        return (p for p in self.parameters() if id(p) not in own)

    @property
    def fixed(self) -> Mapping[str, str]:
        """The rules of stem, preprocess and head."""
        return self.shape.fixed

    def genotype(self) -> Genotype:
        """Derive the discrete architecture encoded by the current alphas; see :meth:`trained`."""
        return self.trained(self.architecture.genotype(self.fixed))

    def trained(self, genotype: Genotype) -> Genotype:
        """Return a genotype of the space with the rules that the supernet trained: ``bp`` on skips without a rule."""
        return genotype if self.skip_rules else genotype.without_skip_rules()
