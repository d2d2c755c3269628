"""The supernet with batched candidates: the function of the modular one, many times faster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bionas_fast import native, torch_private
from bionas_fast.errors import InputError
from bionas_fast.kernels.tables import table
from bionas_fast.nn import connect_direct_feedback, repeats
from bionas_fast.runtime.isolation import preserved_generator
from bionas_fast.space import Space
from bionas_fast.space.cells import CellShape
from bionas_fast.supernet.architecture import Mixing
from bionas_fast.supernet.base import SearchCell, Supernet
from bionas_fast.supernet.mixed_op import MixedOp, add, mixed_ops, shuffle, weighted
from bionas_fast.supernet.modular import ModularCell, ModularSupernet
from bionas_fast.supernet.stacked_edges import EdgeWeights, StackedEdges, product

#: Maximum number of elements in a feature map of a population; larger populations are split.
LARGEST_MAP = 2**26


class StackedCell(SearchCell):
    """A cell that runs all edges from a state as one op. Activations are [N, H, W, C].

    A node is complete once the edges from all earlier states have been added.
    """

    incidence: Tensor
    identity_incidence: Tensor
    identity_columns: Tensor

    def __init__(self, space: Space, partial_channels: int, shape: CellShape) -> None:
        super().__init__(space, partial_channels, shape)
        sources = range(self.inputs + space.nodes - 1)
        #: For each state but the last: the edges from it, and the states that these edges enter.
        self.rows = [[row for row, edge in enumerate(space.edges) if edge[1] == source] for source in sources]
        self.nodes = [[self.inputs + space.edges[row][0] for row in rows] for rows in self.rows]
        native.load()  # now, because counters of operations must know the operators before a pass
        self.stack(mixed_ops(self))

    def stack(self, edges: Sequence[MixedOp]) -> None:
        """Stack the candidates of mixed ops, one per edge."""
        self.states = nn.ModuleList(
            StackedEdges([edges[row] for row in rows], self.stride(source)) for source, rows in enumerate(self.rows)
        )
        self._join_tables(len(edges), len(edges[0].candidates))

    def _join_tables(self, edges: int, candidates: int) -> None:
        """Join the tables of all states, for mixing weights [edges, candidates] of the cell."""
        terms, columns, identities = [], [], []
        for rows, state in zip(self.rows, self._states, strict=True):
            own = torch.zeros(len(state.incidence), edges, candidates)
            own[:, rows] = state.incidence.view(-1, len(rows), candidates)
            terms.append(own.flatten(1))
            row = torch.tensor(rows, dtype=torch.int64)[state.identity_columns // candidates]
            column = row * candidates + state.identity_columns % candidates
            columns.append(column.expand(state.identity_incidence.shape).flatten())
            identities.append(state.identity_incidence.flatten())
        self.register_buffer("incidence", torch.cat(terms), persistent=False)
        self.register_buffer("identity_columns", torch.cat(columns), persistent=False)
        self.register_buffer("identity_incidence", torch.cat(identities), persistent=False)

    @property
    def _states(self) -> Sequence[StackedEdges]:
        return cast("Sequence[StackedEdges]", self.states)

    def forward(self, inputs: Sequence[Tensor], mixing: Tensor) -> Tensor:
        """See :class:`SearchCell`; inputs and output are [N, C, H, W] in channels_last memory format."""
        states = self._first_states(inputs)
        bypassed: dict[int, Tensor] = {}
        for source, (edges, weights) in enumerate(self._prepared(mixing)):
            nodes = self.nodes[source]
            x = states[source]
            if self.partial_channels > 1:
                x, rest = self._split(edges, x)
                for node, scale in zip(nodes, weights.candidates.sum(dim=-1).unbind(), strict=True):
                    bypassed[node] = add(bypassed.get(node), weighted(scale, rest))
            sums = edges(x, weights, [states.get(node) for node in nodes])
            states.update(zip(nodes, sums, strict=True))
            self._complete(source + 1, states, bypassed)
        self._count_batch()
        return self._output(states)

    def population(self, inputs: Sequence[Tensor], mixing: Tensor, shared: Sequence[bool]) -> Tensor:
        """Run P individuals with mixing weights [P, edges, candidates]; return [P·N, out_channels, H', W'].

        Args:
            inputs: outputs of the preceding cells, [P·N, C_in, H, W], individual by individual; where ``shared``,
                [N, C_in, H, W] for all individuals.
        """
        states = self._first_states(inputs)
        bypassed: dict[int, Tensor] = {}
        for source, (edges, weights) in enumerate(self._leaving(mixing)):
            nodes = self.nodes[source]
            x = states[source]
            common = source < self.inputs and shared[source]
            if self.partial_channels > 1:
                x, rest = self._split(edges, x)
                for node, scales in zip(nodes, weights.sum(dim=-1).unbind(dim=-1), strict=True):
                    bypassed[node] = add(bypassed.get(node), _scaled(rest, scales, common))
            for node, out in zip(nodes, edges.population(x, weights, common), strict=True):
                states[node] = add(states.get(node), out)
            self._complete(source + 1, states, bypassed)
        return self._output(states)

    def _first_states(self, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """Preprocess the inputs of the cell into its first states, by index."""
        if not torch.compiler.is_compiling() and torch_private.in_functional_transform():
            raise InputError(
                "the stacked engine does not run inside transforms of torch.func (vmap, grad, jacrev, ...): use "
                "engine='modular', or to_modular() of this supernet"
            )
        images = self.preprocess([x.contiguous(memory_format=torch.channels_last) for x in inputs])
        return {state: image.permute(0, 2, 3, 1) for state, image in enumerate(images)}

    def _leaving(self, mixing: Tensor) -> Iterator[tuple[StackedEdges, Tensor]]:
        """Yield, for each state, the edges from it and their mixing weights [..., edges, candidates]."""
        ordered = mixing.index_select(-2, table(tuple(row for rows in self.rows for row in rows), mixing.device))
        weights = ordered.split([len(rows) for rows in self.rows], dim=-2)
        return zip(self._states, weights, strict=True)

    def _prepared(self, mixing: Tensor) -> list[tuple[StackedEdges, EdgeWeights]]:
        """Return, for each state, the edges from it and what their pass reads: copied and computed for all at once."""
        leaving = [*self._leaving(mixing)]
        flat = mixing.flatten()
        factors = (self.identity_incidence * flat.detach()[self.identity_columns]).split(
            [edges.identity_incidence.numel() for edges in self._states]
        )
        return [
            (edges, EdgeWeights(weights, terms, own.view(edges.identity_incidence.shape), streams))
            for (edges, weights), terms, own, streams in zip(
                leaving, self._terms(leaving, flat), factors, self._streams(), strict=True
            )
        ]

    def _terms(self, leaving: Sequence[tuple[StackedEdges, Tensor]], flat: Tensor) -> Sequence[Tensor]:
        """Compute the mixing weights of each plan's maps: by one product, or by smaller ones, which the CPU prefers."""
        if flat.device.type == "cpu":
            return [product(edges.incidence.to(flat.dtype), own.flatten()) for edges, own in leaving]
        return product(self.incidence.to(flat.dtype), flat).split([len(edges.incidence) for edges, _ in leaving])

    def _streams(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Copy the streams of all banks, and yield those of each state."""
        banks = [bank for edges in self._states for bank in edges.banks]
        streams = [bank.stream for bank in banks if bank.stream is not None]
        copies = iter(torch.cat(streams).split([len(stream) for stream in streams]) if streams else ())
        each = [None if bank.stream is None else next(copies) for bank in banks]
        return zip(each[::2], each[1::2], strict=True)

    def _count_batch(self) -> None:
        """Count a batch of the normalisations of all states, in training."""
        now = repeats.current()
        if now is None or not now.repeated:
            counted = [edges for edges in self._states if edges.training and not edges.plan.empty]
            torch_private.add_to_each([edges.normalisations.batches for edges in counted], 1)

    def _split(self, edges: StackedEdges, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channels for the candidates, and the other channels after the bypass."""
        x, rest = x.split([edges.channels, x.shape[-1] - edges.channels], dim=-1)
        return x, edges.bypass(rest.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _complete(self, state: int, states: dict[int, Tensor], bypassed: dict[int, Tensor]) -> None:
        """Concatenate the channels of a complete node with those that bypassed the candidates, and shuffle them."""
        if state in bypassed:
            both = torch.cat([states[state], bypassed[state]], dim=-1)
            states[state] = shuffle(both, self.partial_channels, dim=3)

    def _output(self, states: dict[int, Tensor]) -> Tensor:
        # Under autocast sums are float32, and the next cell converts its input to the dtype of the first states.
        outputs = [states[state].to(states[0].dtype) for state in self.space.output]
        return torch.cat(outputs, dim=-1).permute(0, 3, 1, 2)

    def read(self, cell: ModularCell) -> None:
        """Copy weights, feedback, streams and statistics from a modular cell."""
        for own, theirs in zip(self.preprocessing, cell.preprocessing, strict=True):
            own.load_state_dict(theirs.state_dict())
        for edges, modular in self._pairs(cell):
            edges.read(modular)

    def write(self, cell: ModularCell) -> None:
        """Copy weights, feedback, streams and statistics to a modular cell."""
        for own, theirs in zip(self.preprocessing, cell.preprocessing, strict=True):
            theirs.load_state_dict(own.state_dict())
        for edges, modular in self._pairs(cell):
            edges.write(modular)

    def _pairs(self, cell: ModularCell) -> Iterator[tuple[StackedEdges, list[MixedOp]]]:
        """Yield, for each state, the edges from it and the corresponding edges of a modular cell."""
        modular = cast("Sequence[MixedOp]", cell.edges)
        leaving = ([modular[row] for row in rows] for rows in self.rows)
        return zip(self._states, leaving, strict=True)


def _scaled(x: Tensor, scales: Tensor, shared: bool) -> Tensor:
    """Multiply x [P·N, …] or, if ``shared``, [N, …] by the scales [P] of P individuals; return [P·N, …]."""
    each = x.unflatten(0, (1 if shared else len(scales), -1))
    return (scales.view(-1, *[1] * x.dim()) * each).flatten(0, 1)


class StackedSupernet(Supernet):
    """The batched supernet; see :func:`bionas_fast.build_supernet`. A seed gives the weights of the modular one."""

    cell_type = StackedCell

    @torch.no_grad()
    def population(self, x: Tensor, mixing: Mixing) -> Tensor:
        """See :meth:`Supernet.population`; the individuals are concatenated along the batch axis.

        Everything before the first mixed sums is common to all individuals and computed once.
        """
        individuals = self._check_population(mixing)
        first = cast("StackedCell", self.cells[0])
        largest = max(1, LARGEST_MAP // (x.shape[0] * math.prod(x.shape[2:]) * first.out_channels))
        if individuals > largest:
            shards = zip(*(mixing[kind].split(largest) for kind in self.space.kinds), strict=True)
            return torch.cat([self.population(x, dict(zip(self.space.kinds, shard, strict=True))) for shard in shards])
        inputs = self._begin(x)
        shared = [True] * len(inputs)
        for cell in self.cells:
            if isinstance(cell, StackedCell):
                out = cell.population(inputs, mixing[cell.kind], shared)
                shared = [*shared[1:], False]
            else:
                out = cell(inputs[-1])
            inputs = [*inputs[1:], out]
        return self._classify(inputs[-1]).unflatten(0, (individuals, -1))

    @torch.no_grad()
    def load_modular(self, net: ModularSupernet) -> None:
        """Copy all weights, alphas, feedback, streams and statistics from a modular supernet of the same shape."""
        for own, theirs in self._pairs(net):
            if isinstance(own, StackedCell) and isinstance(theirs, ModularCell):
                own.read(theirs)
            else:
                own.load_state_dict(theirs.state_dict())

    def to_modular(self) -> ModularSupernet:
        """Build the equivalent supernet with one module per candidate."""
        with preserved_generator():
            net = ModularSupernet(self.space, self.shape, self.architecture.mixture, self.skip_rules)
        connect_direct_feedback(net, self.num_classes)
        net.to(next(self.stem.parameters())).train(self.training)
        with torch.no_grad():
            for own, theirs in self._pairs(net):
                if isinstance(own, StackedCell) and isinstance(theirs, ModularCell):
                    own.write(theirs)
                else:
                    theirs.load_state_dict(own.state_dict())
        return net

    def _pairs(self, net: ModularSupernet) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield the modules of this network with the corresponding modules of a modular one."""
        for name in ("stem", "final", "classifier", "architecture"):
            yield self.get_submodule(name), net.get_submodule(name)
        yield from zip(self.cells, net.cells, strict=True)
