"""Random search with shared weights (Li and Talwalkar 2019)."""

from __future__ import annotations

from bionas_fast.searching.discrete import DiscreteSearch
from bionas_fast.searching.names import register_method
from bionas_fast.space import Genotype


@register_method("random")
class RandomSearch(DiscreteSearch):
    """Evaluates new random individuals, and the best one so far again."""

    def breed(self) -> list[Genotype]:
        best = [self.genotype()] if self.population else []
        return best + [self._random_genotype() for _ in range(self.config.population - len(best))]
