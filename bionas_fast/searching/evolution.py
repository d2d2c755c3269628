"""Regularised evolution with shared weights (Real et al. 2019)."""

from __future__ import annotations

import torch

from bionas_fast.searching.discrete import DiscreteSearch
from bionas_fast.searching.names import register_method
from bionas_fast.space import Genotype, mutated


@register_method("evolution")
class RegularisedEvolution(DiscreteSearch):
    """Replaces the older half of each generation by mutations of the winners of tournaments.

    All individuals of a generation are evaluated on the same batch, so that old and new ones can be compared.
    """

    options = (*DiscreteSearch.options, "tournament")

    def breed(self) -> list[Genotype]:
        size = self.config.population
        if not self.population:
            return [self._random_genotype() for _ in range(size)]
        children = [mutated(self._parent(), self.net.space, self.generator) for _ in range(size // 2)]
        return self.population[len(children) :] + children

    def _parent(self) -> Genotype:
        drawn = torch.randperm(len(self.population), generator=self.generator)[: self.config.tournament]
        return self.population[int(drawn[self.losses[drawn].argmin()])]
