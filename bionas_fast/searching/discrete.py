"""The base of methods that search among discrete architectures with shared weights (Li and Talwalkar 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from bionas_fast.data import Stream
from bionas_fast.errors import InputError
from bionas_fast.runs.checkpoint import expect_form
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.fitness import cross_entropies, logits_of
from bionas_fast.searching.method import ROBUSTNESS, SearchMethod
from bionas_fast.space import Genotype, one_hot, random_genotype
from bionas_fast.supernet import Mixing, Supernet


class DiscreteSearch(SearchMethod):
    """Trains the weights under one random architecture at a time, and evaluates as many of them as ``eg`` does.

    The alphas are the frequencies of the candidates in the current population, so that reports can be compared.
    """

    options: ClassVar[tuple[str, ...]] = ("population", "generations", *ROBUSTNESS)
    from_alphas = False

    def __init__(self, net: Supernet, config: SearchConfig, *rest: Any) -> None:
        super().__init__(net, config, *rest)
        self.generator = torch.Generator().manual_seed(config.seed + 2)
        self.population: list[Genotype] = []
        self.losses = torch.empty(0, dtype=torch.float64)
        self._first = self._random_genotype()

    def before_epoch(self, valid: Stream) -> None:
        if self.warming_up:
            return
        for number in range(self.config.generations):
            self.announce(f"judging population {number + 1} of {self.config.generations}")
            self.population = self.breed()
            self.evaluate(*next(valid))
        self._set_alphas()

    def breed(self) -> list[Genotype]:
        """Create the population of the next generation."""
        raise NotImplementedError(f"{type(self).__name__} defines no breed()")

    def evaluate(self, x: Tensor, y: Tensor) -> None:
        """Set the loss of each individual on a validation batch."""
        weights = [self._weights(genotype) for genotype in self.population]
        mixing = {kind: torch.stack([each[kind] for each in weights]) for kind in self.net.space.kinds}
        clean = cross_entropies(logits_of(self.net, x, mixing), y)
        self.losses = (clean + self.robustness.loss(self.net, x, y, mixing)).cpu()

    def mixing(self) -> Mixing:
        return self._weights(self._random_genotype())

    def evaluation_mixing(self) -> Mixing:
        return self._weights(self.genotype())

    def genotype(self) -> Genotype:
        return self.population[int(self.losses.argmin())] if self.population else self._first

    def _random_genotype(self) -> Genotype:
        return random_genotype(self.net.space, self.generator, self.net.fixed)

    def _weights(self, genotype: Genotype) -> dict[str, Tensor]:
        like = next(self.net.architecture.parameters())
        return {kind: weights.to(like) for kind, weights in one_hot(genotype, self.net.space).items()}

    @torch.no_grad()
    def _set_alphas(self) -> None:
        weights = [self._weights(genotype) for genotype in self.population]
        for kind, alpha in self.net.alphas.items():
            count = torch.stack([each[kind] for each in weights]).sum(dim=0)
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
            one_hot(genotype, self.net.space)  # ValueError for a genotype of another space
        self.population, self.losses = population, state["losses"].clone()
        self.generator.set_state(state["generator"])
