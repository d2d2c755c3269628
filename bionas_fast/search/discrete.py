"""Baselines that search among discrete architectures with shared weights (Li and Talwalkar 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from bionas_fast.data import BatchStream
from bionas_fast.errors import InputError
from bionas_fast.runs.checkpoint import expect_form
from bionas_fast.search.config import SearchConfig
from bionas_fast.search.fitness import cross_entropies, logits_of
from bionas_fast.search.method import Strategy
from bionas_fast.search.methods import register_method
from bionas_fast.space import Genotype, mutated, one_hot, random_genotype
from bionas_fast.supernet import Mixing, Supernet


class GenotypeSearch(Strategy):
    """Trains the weights under a random architecture at a time, and judges as many of them as ``eg`` does.

    The alphas say how often each candidate stands in the present population, so that reports can be compared.
    """

    options: ClassVar[tuple[str, ...]] = ("population", "generations")

    def __init__(self, net: Supernet, config: SearchConfig, *rest: Any) -> None:
        super().__init__(net, config, *rest)
        self.generator = torch.Generator().manual_seed(config.seed + 2)
        self.population: list[Genotype] = []
        self.losses = torch.empty(0, dtype=torch.float64)
        self._first = self._drawn()

    def before_epoch(self, valid: BatchStream) -> None:
        if self.warming_up:
            return
        for _ in range(self.config.generations):
            self.population = self.breed()
            self.judge(*next(valid))
        self._set_alphas()

    def breed(self) -> list[Genotype]:
        """The population of the next generation."""
        raise NotImplementedError(f"{type(self).__name__} defines no breed()")

    def judge(self, x: Tensor, y: Tensor) -> None:
        """Sets the loss of each individual on a validation batch."""
        each = [self._weights(genotype) for genotype in self.population]
        mixing = {kind: torch.stack([own[kind] for own in each]) for kind in self.net.space.kinds}
        self.losses = cross_entropies(logits_of(self.net, x, mixing), y).cpu()

    def mixing(self) -> Mixing:
        return self._weights(self._drawn())

    def found(self) -> Mixing:
        return self._weights(self.genotype())

    def genotype(self) -> Genotype:
        return self.population[int(self.losses.argmin())] if self.population else self._first

    def _drawn(self) -> Genotype:
        return random_genotype(self.net.space, self.generator, self.net.fixed)

    def _weights(self, genotype: Genotype) -> dict[str, Tensor]:
        like = next(self.net.architecture.parameters())
        return {kind: own.to(like) for kind, own in one_hot(genotype, self.net.space).items()}

    @torch.no_grad()
    def _set_alphas(self) -> None:
        each = [self._weights(genotype) for genotype in self.population]
        for kind, alpha in self.net.alphas.items():
            count = torch.stack([own[kind] for own in each]).sum(dim=0)
            alpha.copy_(((count + 1 / count.shape[1]) / (count.sum(dim=1, keepdim=True) + 1)).log())

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "population": [genotype.to_json() for genotype in self.population],
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        size = len(state["population"])
        if size not in (0, self.config.population):
            raise InputError(f"strategy.population: expected {self.config.population}, got {size}")
        expect_form(state["generator"], self.generator.get_state(), "strategy.generator")
        expect_form(state["losses"], torch.empty(size, dtype=torch.float64), "strategy.losses")
        population = [Genotype.from_json(text) for text in state["population"]]
        for genotype in population:
            one_hot(genotype, self.net.space)  # ValueError where it is of another space
        self.population, self.losses = population, state["losses"].clone()
        self.generator.set_state(state["generator"])


@register_method("random")
class RandomSearch(GenotypeSearch):
    """The best so far, judged anew beside others by chance."""

    def breed(self) -> list[Genotype]:
        kept = [self.genotype()] if self.population else []
        return kept + [self._drawn() for _ in range(self.config.population - len(kept))]


@register_method("evolution")
class RegularisedEvolution(GenotypeSearch):
    """Half of each generation leaves, the oldest; mutations of the winners of tournaments come (Real et al. 2019).

    All are judged on the batch of their generation, so that old and new ones can be compared.
    """

    options = ("population", "generations", "tournament")

    def breed(self) -> list[Genotype]:
        size = self.config.population
        if not self.population:
            return [self._drawn() for _ in range(size)]
        children = [mutated(self._parent(), self.net.space, self.generator) for _ in range(size // 2)]
        return self.population[len(children) :] + children

    def _parent(self) -> Genotype:
        drawn = torch.randperm(len(self.population), generator=self.generator)[: self.config.tournament]
        return self.population[int(drawn[self.losses[drawn].argmin()])]
