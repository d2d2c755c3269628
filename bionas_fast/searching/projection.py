"""Choice of candidates and edges by what the supernet loses without them (DARTS-PT, Wang et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bionas_fast.errors import InputError
from bionas_fast.searching.fitness import cross_entropies, logits_of
from bionas_fast.space import Genotype, derive_genotype
from bionas_fast.space.candidates import NONE
from bionas_fast.supernet import Mixing, Supernet

#: The logit of a chosen candidate: its softmax weight is 1 in float64.
CHOSEN = 100.0


class Projection:
    """Decides a supernet edge by edge, in random order, and is then its architecture.

    First every edge takes the candidate without which the loss on a validation batch is largest, and keeps no other;
    then every node keeps the edges without which it is largest (Wang et al. 2021, algorithm 1). A candidate or an edge
    is left out by the weight 0. In the skeleton of NAS-Bench-201 nodes keep all edges, and ``none`` may be chosen.

    Args:
        net: the supernet.
        generator: draws the order.

    Attributes:
        done: the number of decisions so far.
        total: the number of decisions in all.
    """

    def __init__(self, net: Supernet, generator: torch.Generator) -> None:
        space = net.space
        self.net, self.done = net, 0
        self.keep = space.skeleton.edges_per_node
        self.eligible = [k for k, c in enumerate(space.candidates) if self.keep is None or c.operation != NONE]
        edges = [(kind, row) for kind in space.kinds for row in range(len(space.edges))]
        nodes = [(kind, node) for kind in space.kinds for node in range(space.nodes)] if self.keep else []
        self._edges, self._nodes = (
            [items[k] for k in torch.randperm(len(items), generator=generator).tolist()] for items in (edges, nodes)
        )
        self.total = len(edges) + len(nodes)
        #: The candidate of every edge, int64 [edges] by kind of cell; -1 if it is not decided.
        self.choice = {kind: torch.full((len(space.edges),), -1) for kind in space.kinds}
        #: Whether an edge is kept, bool [edges] by kind of cell.
        self.kept = {kind: torch.ones(len(space.edges), dtype=torch.bool) for kind in space.kinds}

    def applied(self, mixing: Mixing) -> Mixing:
        """Replace the weights of decided edges: their candidate has that of the whole edge, left out edges have none.

        Args:
            mixing: for each kind of cell [edges, candidates].
        """
        if not self.done:
            return mixing
        result = {}
        for kind, weights in mixing.items():
            choice, kept = self.choice[kind].to(weights.device), self.kept[kind].to(weights.device)
            alone = torch.zeros_like(weights).scatter_(1, choice.clamp_min(0)[:, None], weights.sum(1, keepdim=True))
            result[kind] = torch.where((choice >= 0)[:, None], alone, weights) * kept[:, None]
        return result

    def decide(self, mixing: Mixing, x: Tensor, y: Tensor) -> None:
        """Make the next decision on a validation batch x [N, C, H, W], y [N].

        Args:
            mixing: the weights under the architecture parameters, for each kind of cell [edges, candidates].
        """
        space = self.net.space
        if self.done < len(self._edges):
            kind, row = self._edges[self.done]
            without = [(row, candidate) for candidate in self.eligible]
            losses = self._losses(self.applied(mixing), kind, without, x, y)
            self.choice[kind][row] = self.eligible[int(losses.argmax())]
        else:
            kind, node = self._nodes[self.done - len(self._edges)]
            rows = [row for row, edge in enumerate(space.edges) if edge[0] == node]
            every = slice(None)
            losses = self._losses(self.applied(mixing), kind, [(row, every) for row in rows], x, y)
            for row in sorted(range(len(rows)), key=lambda k: -losses[k].item())[self.keep :]:
                self.kept[kind][rows[row]] = False
        self.done += 1

    @torch.no_grad()
    def _losses(self, mixing: Mixing, kind: str, without: list[tuple[int, Any]], x: Tensor, y: Tensor) -> Tensor:
        """Compute the loss without each of these entries of the weights of a kind of cell, float64 [P]."""
        individuals = {own: weights.expand(len(without), -1, -1).clone() for own, weights in mixing.items()}
        for individual, entry in enumerate(without):
            individuals[kind][individual][entry] = 0
        return cross_entropies(logits_of(self.net, x, individuals), y)

    def genotype(self) -> Genotype:
        """Return the architecture: what is decided, and for the rest that of the architecture parameters."""
        architecture, space = self.net.architecture, self.net.space
        logits, weights = architecture.logits(), architecture.edge_weights()
        edge_weights = {}
        for kind, choice in self.choice.items():
            alpha = logits[kind].detach().to("cpu", torch.float64, copy=True)
            decided = choice >= 0
            alpha[decided] = 0
            alpha[decided, choice[decided]] = CHOSEN
            logits[kind] = alpha
            edge_weights[kind] = self.kept[kind].double() * (weights[kind].detach().cpu() if weights else 1)
        return self.net.trained(derive_genotype(logits, space, self.net.fixed, edge_weights=edge_weights))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        return {"done": self.done, "choice": dict(self.choice), "kept": dict(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state.

        Raises:
            InputError: it does not fit the supernet.
        """
        done, edges = state["done"], len(self.net.space.edges)
        if type(done) is not int or not 0 <= done <= self.total:
            raise InputError(f"strategy.projection.done: expected 0 to {self.total}, got {done!r}")
        for kind in self.choice:
            choice, kept = state["choice"][kind], state["kept"][kind]
            if choice.shape != (edges,) or kept.shape != (edges,) or kept.dtype != torch.bool:
                raise InputError(f"strategy.projection: expected {edges} edges of {kind} cells")
            if choice.dtype != torch.int64 or not {*choice.tolist()} <= {-1, *self.eligible}:
                raise InputError("strategy.projection.choice: no candidates of the space")
            self.choice[kind], self.kept[kind] = choice.clone(), kept.clone()
        self.done = done
