"""All edges from one state of a cell, built from their mixed ops and run together.

All of them read the same tensor, so their candidates run as one op (``ops.mixed_edges``). Candidates that the op does
not support run as modules. Activations are [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bionas_fast.kernels.tables import table
from bionas_fast.nn import repeats
from bionas_fast.nn.batch_norm import Synchronised
from bionas_fast.ops.mixed_edges.autograd import mixed_edges
from bionas_fast.ops.mixed_edges.candidate_maps import candidate_maps
from bionas_fast.ops.mixed_edges.statistics import Statistics
from bionas_fast.supernet.mixed_op import MixedOp, add, weighted
from bionas_fast.supernet.sorting import make_plan, sort_candidates
from bionas_fast.supernet.weight_bank import BankFeedback, WeightBank


class Normalisations(nn.Module):
    """The running statistics of K batch normalisations without affine parameters, [K, C] each.

    Args:
        layers: for each row the modules whose statistics it holds: one, several equal ones of different edges, or none.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(self, layers: Sequence[Sequence[nn.BatchNorm2d]], channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(layers), channels))
        self.register_buffer("var", torch.ones(len(layers), channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.read(layers)

    def read(self, layers: Sequence[Sequence[nn.BatchNorm2d]]) -> None:
        """Copy the statistics from layers like those that this was built from."""
        for k, copies in enumerate(layers):
            for layer in copies[:1]:
                mean, var, batches = _statistics(layer)
                self.mean[k], self.var[k] = mean, var
                self.batches.copy_(batches)

    def write(self, layers: Sequence[Sequence[nn.BatchNorm2d]]) -> None:
        """Copy the statistics to such layers."""
        for k, copies in enumerate(layers):
            for layer in copies:
                mean, var, batches = _statistics(layer)
                mean.copy_(self.mean[k])
                var.copy_(self.var[k])
                batches.copy_(self.batches)


def _statistics(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = layer.running_mean, layer.running_var
    batches = layer.num_batches_tracked
    assert mean is not None and var is not None and batches is not None
    return mean, var, batches


@dataclass(frozen=True)
class EdgesFeedback:
    """The feedback of all candidates on the edges from a state in one pass.

    Attributes:
        weights: the feedback of all candidates with weights.
        identities: the feedback of the identities, [identities, C]; None if there are none.
        factors: the mixing weight of each identity on its edge, [edges, identities].
    """

    weights: BankFeedback
    identities: BankFeedback | None
    factors: Tensor

    def make(self) -> tuple[Tensor, Tensor | None]:
        """Compute B of the weights, flat, and Σ mixing · B over the identities of each edge, [edges, C]."""
        b = self.weights.make()
        if self.identities is None:
            return b, None
        own = self.identities.make()
        return b, self.factors.to(own.dtype) @ own.view(self.factors.shape[1], -1)


class EdgeWeights(NamedTuple):
    """The mixing weights of one pass as its parts read them, and the draws of the pass.

    Attributes:
        candidates: [edges, candidates].
        terms: those of the plan's maps, each a sum of mixing weights.
        identities: the weight of each identity on its edge, [edges, identities], detached.
        streams: the streams of both banks in this pass, of candidates with weights and of identities.
    """

    candidates: Tensor
    terms: Tensor
    identities: Tensor
    streams: tuple[Tensor | None, Tensor | None]


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices in their own precision, also under autocast."""
    device = a.device.type
    if not torch.is_autocast_enabled(device):
        return a @ b
    with torch.autocast(device, enabled=False):
        return a @ b


class _Seen(NamedTuple):
    """The state that a pass reads besides its parameters."""

    statistics: Statistics
    feedback: EdgesFeedback

    def copy(self) -> _Seen:
        """Return a copy that later passes do not change; a repeat updates the copy of the statistics."""
        own = self.statistics
        return self._replace(statistics=replace(own, mean=own.mean.clone(), var=own.var.clone()))


class StackedEdges(Synchronised):
    """All edges from one state of a cell, built from their mixed ops."""

    incidence: Tensor
    identity_incidence: Tensor
    identity_columns: Tensor

    def __init__(self, edges: Sequence[MixedOp], stride: int) -> None:
        super().__init__()
        self.count, self.channels = len(edges), edges[0].channels
        self.bypass = edges[0].bypass
        groups = sort_candidates(edges, stride)
        self.plan, columns = make_plan(groups)
        self.bank = WeightBank(groups.weights)
        self.normalisations = Normalisations(groups.normalisations, self.channels)
        self.identities = WeightBank(groups.identities)
        self.others = nn.ModuleList(module for _, module in groups.others)
        self.other_columns = [column for column, _ in groups.others]
        candidates = len(edges[0].candidates)
        incidence = torch.zeros(len(columns), self.count * candidates)
        for t, summed in enumerate(columns):
            for e, k in summed:
                incidence[t, e * candidates + k] = 1
        self.register_buffer("incidence", incidence, persistent=False)
        identities = torch.tensor([column for column, _ in groups.skips], dtype=torch.int64).view(-1, 2)
        own = (torch.arange(self.count)[:, None] == identities[:, 0]).to(incidence.dtype)
        self.register_buffer("identity_incidence", own, persistent=False)
        self.register_buffer("identity_columns", identities[:, 0] * candidates + identities[:, 1], persistent=False)

    @property
    def banks(self) -> tuple[WeightBank, WeightBank]:
        """The banks of the candidates with weights and of the identities."""
        return self.bank, self.identities

    def prepare(self, weights: Tensor) -> EdgeWeights:
        """Prepare a pass with mixing weights [E, candidates]; ``StackedCell`` prepares all of its edges at once."""
        flat = weights.flatten()
        terms = product(self.incidence.to(weights.dtype), flat)
        identities = self.identity_incidence * flat.detach()[self.identity_columns]
        first, second = (None if bank.stream is None else bank.stream.clone() for bank in self.banks)
        return EdgeWeights(weights, terms, identities, (first, second))

    def read(self, edges: Sequence[MixedOp]) -> None:
        """Copy weights, feedback, streams and statistics from mixed ops like those that this was built from."""
        groups = sort_candidates(edges, self.plan.stride)
        self.bank.read(groups.weights)
        self.identities.read(groups.identities)
        self.normalisations.read(groups.normalisations)
        for own, (_, theirs) in zip(self.others, groups.others, strict=True):
            own.load_state_dict(theirs.state_dict())

    def write(self, edges: Sequence[MixedOp]) -> None:
        """Copy weights, feedback, streams and statistics to such mixed ops."""
        groups = sort_candidates(edges, self.plan.stride)
        self.bank.write(groups.weights)
        self.identities.write(groups.identities)
        self.normalisations.write(groups.normalisations)
        for own, (_, theirs) in zip(self.others, groups.others, strict=True):
            theirs.load_state_dict(own.state_dict())

    def forward(self, x: Tensor, weights: EdgeWeights, into: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Compute the sum of every edge, E × [N, H', W', C], of x [N, H, W, C] and its mixing weights.

        Args:
            into: for each edge the tensor that its sum is added to, or None.

        Returns:
            One tensor per edge; the entry of ``into`` if no candidate contributes.
        """
        now = repeats.current()
        seen = self._see(weights) if now is None else now.once(self, partial(self._see, weights), _Seen.copy)
        total = list(into)
        image = x.permute(0, 3, 1, 2).contiguous() if self.others else x
        for (e, k), module in zip(self.other_columns, self.others, strict=True):
            total[e] = add(total[e], weighted(weights.candidates[e, k], module(image).permute(0, 2, 3, 1)))
        if self.plan.empty:
            return tuple(total)
        return mixed_edges(
            x,
            weights.terms,
            total,
            self.bank.coupled,
            self.plan,
            seen.statistics,
            seen.feedback,
        )

    def population(self, x: Tensor, weights: Tensor, shared: bool) -> tuple[Tensor, ...]:
        """Compute the sum of every edge, E × [P·N, H', W', C], for P individuals' mixing weights [P, E, candidates].

        Args:
            x: the states of the individuals, concatenated, [P·N, H, W, C]; if ``shared``, [N, H, W, C].
        """
        if not shared:
            nothing = [None] * self.count
            pairs = zip(x.chunk(len(weights)), weights, strict=True)
            each = [self(own, self.prepare(w), nothing) for own, w in pairs]
            return tuple(torch.cat(sums) for sums in zip(*each, strict=True))
        # Maps that do not depend on the individual are computed once; mixing them is a matrix product.
        columns = [*self.other_columns]
        maps = [module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[None] for module in self.others]
        mixing = torch.stack([weights[:, e, k] for e, k in columns], dim=1) if columns else weights[:, 0, :0]
        edges = [e for e, _ in columns]
        if not self.plan.empty:
            maps.append(candidate_maps(x, self.bank.weight, self.plan, self._statistics()))
            mixing = torch.cat([mixing, product(weights.flatten(1), self.incidence.to(weights.dtype).T)], dim=1)
            edges += [*self.plan.separable.edges, *self.plan.terms.edges]
        stack = torch.cat(maps)
        stack = stack.to(torch.promote_types(stack.dtype, mixing.dtype))
        sums = []
        for e in range(self.count):
            own = table(tuple(i for i, edge in enumerate(edges) if edge == e), x.device)
            total = product(mixing[:, own].to(stack.dtype), stack[own].flatten(1))
            sums.append(total.view(-1, *stack.shape[2:]))
        return tuple(sums)

    def _statistics(self) -> Statistics:
        running = self.normalisations
        return Statistics(running.mean, running.var, self.training, self.synchroniser)

    def _see(self, weights: EdgeWeights) -> _Seen:
        """Read the state of the pass that is about to begin."""
        return _Seen(self._statistics(), self._feedback(weights))

    def _feedback(self, weights: EdgeWeights) -> EdgesFeedback:
        """Record the feedback of the pass that is about to begin."""
        bank, identities = weights.streams
        return EdgesFeedback(
            self.bank.prepare(bank),
            self.identities.prepare(identities) if self.plan.identity else None,
            weights.identities,
        )
