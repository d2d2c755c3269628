"""BioNAS-EG: architecture parameters by an evolution strategy (BioNAS, appendix; EG-NAS, Cai et al. 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bionas_fast.data import Stream
from bionas_fast.errors import InputError, NotFinite
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.fitness import cross_entropies, logits_of, similarity
from bionas_fast.searching.method import MIXING, ROBUSTNESS, SearchMethod
from bionas_fast.searching.names import register_method
from bionas_fast.supernet import Supernet


@register_method("eg")
class PersistentEvolution(SearchMethod):
    """CMA-ES over all architecture parameters from the first epoch to the last.

    Every epoch begins with several generations, each evaluated on a separate validation batch. The weights are trained
    under the mean of the distribution, and the final genotype is derived from it. The covariance matrix is diagonal:
    with about 600 parameters and 100 generations a full one has no time to adapt (Ros and Hansen 2008).

    Of several strategies (``eg_searches``; BioNAS, eq. 18 and 19) each begins at a mean of its own, drawn from the
    initial distribution, and sees the same batches; that whose last population has the best mean fitness counts.
    """

    options = (
        *MIXING,
        *ROBUSTNESS,
        "population",
        "generations",
        "eg_sigma",
        "eg_searches",
        "fitness_cross_entropy",
        "fitness_similarity",
    )
    divergence = ("eg_sigma",)

    def __init__(self, net: Supernet, config: SearchConfig, *rest: Any) -> None:
        super().__init__(net, config, *rest)
        start = parameters_to_vector(net.alpha_parameters()).detach().cpu().double().numpy()
        means = np.random.default_rng(config.seed + 3).standard_normal((config.eg_searches, len(start)))
        means *= config.eg_sigma if config.eg_searches > 1 else 0
        self.distributions = [
            Distribution(start + mean, config.eg_sigma, config.population, config.seed + 2 + 1_000_003 * number)
            for number, mean in enumerate(means)
        ]

    def before_epoch(self, valid: Stream) -> None:
        if self.warming_up:
            return
        for number in range(self.config.generations):
            self.announce(f"judging population {number + 1} of {self.config.generations}")
            batch = next(valid)
            for distribution in self.distributions:
                distribution.tell(self.fitness(torch.from_numpy(distribution.ask()), *batch).numpy())
        self._set_alphas(min(self.distributions, key=lambda each: each.fitness).mean)

    def fitness(self, individuals: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Compute eq. 22, cross-entropy and similarity with the current architecture; float64 [P], lower is better.

        An individual whose fitness is not finite gets that of the worst.

        Raises:
            NotFinite: no fitness is finite.
        """
        architecture = self.net.architecture
        like = next(architecture.parameters())
        with torch.no_grad():
            mixing = architecture.mixings(individuals.to(like), self.auxiliary_skip)
            defined = [rows.flatten(1).isfinite().all(dim=1) for rows in mixing.values()]
            if not torch.stack(defined).all(dim=0).any():
                raise NotFinite("every architecture drawn by the evolution strategy", self.divergence)
            present = architecture.mixing(auxiliary_skip=self.auxiliary_skip)
            loss = cross_entropies(logits_of(self.net, x, mixing), y) + self.robustness.loss(self.net, x, y, mixing)
            closeness = similarity(mixing, present)
        fitness = self.config.fitness_cross_entropy * loss + self.config.fitness_similarity * closeness
        finite = fitness.isfinite()
        if not finite.any():
            raise NotFinite("the fitness of every individual", ("fitness_cross_entropy", "fitness_similarity"))
        return fitness.where(finite, fitness[finite].max()).cpu()

    def _set_alphas(self, mean: np.ndarray) -> None:
        parameters = self.net.alpha_parameters()
        vector_to_parameters(torch.from_numpy(mean).to(parameters[0]), parameters)

    def state_dict(self) -> dict[str, Any]:
        return {"distributions": [distribution.state_dict() for distribution in self.distributions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for distribution, own in zip(self.distributions, state["distributions"], strict=True):
            distribution.load_state_dict(own, self.config.epochs * self.config.generations)


class Distribution:
    """A CMA-ES that can be saved: a function of its start, its seed and the fitness of every individual so far.

    Args:
        start: the initial mean, float64 [D].
        sigma: the initial step size.
        population: P.
        seed: the seed of its random generator.
    """

    def __init__(self, start: np.ndarray, sigma: float, population: int, seed: int) -> None:
        self._arguments = sigma, population, seed
        self._begin(start)

    def _begin(self, start: np.ndarray) -> None:
        import cma  # imported on use: with scipy's statistics it takes a second

        sigma, population, seed = self._arguments
        generator = np.random.default_rng(seed)
        options = {
            "popsize": population,
            "CMA_diagonal": True,
            "randn": lambda *shape: generator.standard_normal(shape),
            "verbose": -9,
        }
        self._start, self._fitness = start, np.empty((0, population))
        self._strategy = cma.CMAEvolutionStrategy(start.copy(), sigma, options)

    @property
    def mean(self) -> np.ndarray:
        """The mean of the distribution, float64 [D]."""
        return np.array(self._strategy.mean)

    @property
    def sigma(self) -> float:
        """The current step size."""
        return float(self._strategy.sigma)

    @property
    def fitness(self) -> float:
        """The mean fitness of the individuals last judged."""
        return float(self._fitness[-1].mean())

    def ask(self) -> np.ndarray:
        """Draw new individuals, float64 [P, D]."""
        self._asked = self._strategy.ask()
        return np.stack(self._asked)

    def tell(self, fitness: np.ndarray) -> None:
        """Update the distribution with the fitness of the individuals last drawn, float64 [P], lower is better."""
        self._strategy.tell(self._asked, fitness.tolist())
        self._fitness = np.concatenate([self._fitness, fitness[None]])

    def state_dict(self) -> dict[str, Any]:
        """Return the start and the fitness of all generations [G, P], as tensors."""
        return {"start": torch.from_numpy(self._start), "fitness": torch.from_numpy(self._fitness)}

    def load_state_dict(self, state: dict[str, Any], most: int) -> None:
        """Restore the state by replaying all generations, at most ``most``.

        Raises:
            InputError: the state does not fit this distribution.
        """
        start, fitness = (state[name].numpy() for name in ("start", "fitness"))
        fits = start.shape == self._start.shape and fitness.shape[1:] == self._fitness.shape[1:] and fitness.ndim == 2
        if not (fits and start.dtype == fitness.dtype == np.float64 and len(fitness) <= most):
            raise InputError("strategy: not the state of such an evolution strategy")
        if not (np.isfinite(start).all() and np.isfinite(fitness).all()):
            raise InputError("strategy: values that are not finite")
        self._begin(start)
        for row in fitness:
            self.ask()
            self.tell(row)
