"""BioNAS-DARTS: architecture parameters by gradient descent (Liu et al. 2019; BioNAS, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.data import Stream
from bionas_fast.nn import frozen_plasticity
from bionas_fast.runs.checkpoint import expect_form, load_optimizer
from bionas_fast.runtime import distributed
from bionas_fast.runtime.graphs import Replayed
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.frozen import frozen
from bionas_fast.searching.method import MIXING, SearchMethod
from bionas_fast.searching.names import register_method
from bionas_fast.searching.projection import Projection
from bionas_fast.space import Genotype
from bionas_fast.supernet import Mixing, Supernet

Batch = tuple[Tensor, Tensor]

#: Steps of the adversarial perturbation (Chen and Hsieh 2020, section 5).
ATTACK_STEPS = 7


@register_method("darts")
class Darts(SearchMethod):
    """First order: before every weight step, one Adam step of the alphas on a validation batch."""

    options = (
        *MIXING,
        "beta_decay",
        "sampling",
        "gdas_temperature",
        "alpha_learning_rate",
        "alpha_betas",
        "alpha_weight_decay",
        "alpha_perturbation",
        "alpha_perturbation_eps",
        "projection_epochs",
    )
    divergence = ("alpha_learning_rate", "alpha_weight_decay", "beta_decay")

    def __init__(self, net: Supernet, config: SearchConfig, *rest: Any) -> None:
        super().__init__(net, config, *rest)
        assert config.alpha_learning_rate is not None
        self.alpha_optimizer = torch.optim.Adam(
            net.alpha_parameters(),
            config.alpha_learning_rate,
            betas=config.alpha_betas,
            weight_decay=config.alpha_weight_decay,
            capturable=self.precision.device.type == "cuda",  # counts its steps on the device
        )
        self.alpha_step = Replayed("the search has not begun")
        self.generator = torch.Generator().manual_seed(config.seed + 2)
        self.temperature = 1.0
        self.projection = Projection(net, torch.Generator().manual_seed(config.seed + 3))
        #: Added to the weights of the candidates in the next training pass, by kind of cell.
        self.shift: Mixing = {}

    def capture(self, obstacle: str) -> None:
        self.alpha_step.obstacle = obstacle

    def prepare(self, epoch: int) -> None:
        super().prepare(epoch)
        first, last = self.config.gdas_temperature
        self.temperature = first + (last - first) * epoch / max(self.config.epochs - 1, 1)
        self.alpha_step.forget()

    @property
    def projecting(self) -> bool:
        """Whether the alphas are final, and the supernet is decided edge by edge."""
        return self.epoch >= self.config.epochs - self.config.projection_epochs

    def before_epoch(self, valid: Stream) -> None:
        if not self.projecting:
            return
        self.shift = {}
        projection, last = self.projection, self.config.projection_epochs
        wanted = -(-projection.total * (self.epoch + 1 - self.config.epochs + last) // last)
        while projection.done < wanted:
            self.announce(f"deciding edge {projection.done + 1} of {projection.total}")
            with torch.no_grad():
                projection.decide(self.relaxation(), *next(valid))

    def before_weight_step(self, x: Tensor, y: Tensor, valid: Stream) -> None:
        if self.warming_up or self.projecting:
            return
        self.alpha_step.run(self._alpha_step, x, y, *distributed.shard(*next(valid)))
        if self.config.alpha_perturbation != "off":
            eps = self.config.alpha_perturbation_eps * self.epoch / self.config.epochs
            self.shift = self._perturbation(eps, x, y)

    def _perturbation(self, eps: float, x: Tensor, y: Tensor) -> Mixing:
        """Return a change of each candidate's weight by at most ε (SDARTS, Chen and Hsieh 2020).

        ``random`` draws it from U(-ε, ε). ``adversarial`` takes steps from there by the sign of the gradient of the
        training loss, in evaluation mode and projected onto the bound.
        """
        base = {kind: weights.detach() for kind, weights in self.relaxation().items()}
        shift = {}
        for kind, weights in base.items():
            uniform = torch.rand(weights.shape, generator=self.generator, dtype=torch.float64)
            shift[kind] = (eps * (2 * uniform - 1)).to(weights)
        steps = ATTACK_STEPS if eps and self.config.alpha_perturbation == "adversarial" else 0
        training = self.net.training
        self.net.eval()
        for _ in range(steps):
            mixing = {kind: (weights + shift[kind]).requires_grad_() for kind, weights in base.items()}
            with frozen(self.net.parameters()):
                grads = self.precision.gradients(self._loss(x, y, mixing), list(mixing.values()))
            distributed.average(grads)
            for kind, grad in zip(mixing, grads, strict=True):
                if grad is not None:
                    shift[kind] = (shift[kind] + 2 * eps / steps * grad.sign()).clamp(-eps, eps)
        self.net.train(training)
        return shift

    def _alpha_step(self, x: Tensor, y: Tensor, valid_x: Tensor, valid_y: Tensor) -> Sequence[Tensor]:
        """Update the architecture parameters."""
        alphas = self.net.alpha_parameters()
        with frozen_plasticity(self.net):
            grads = self.gradients((x, y), (valid_x, valid_y))
        distributed.average(grads)
        if self._reads_gradients and not all(g is None or torch.isfinite(g).all() for g in grads):
            self.precision.overflowed("the architecture's gradient")
            return ()
        for alpha, grad, decay in zip(alphas, grads, self._beta_decay(alphas), strict=True):
            alpha.grad = _sum(grad, decay)
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad()
        return ()

    @property
    def _reads_gradients(self) -> bool:
        """Whether a step waits for its gradient, to see that it is finite.

        On a GPU without loss scaling the loss of the weights' step shows it, which is read with those of other steps.
        """
        return self.precision.device.type == "cpu" or self.precision.scaler.is_enabled()

    def gradients(self, train: Batch, valid: Batch) -> Sequence[Tensor | None]:
        """Compute the gradient of the validation loss for each architecture parameter; None for an unused one."""
        with frozen(self.net.weight_parameters()):
            return self.precision.gradients(self._loss(*valid), self.net.alpha_parameters())

    def _loss(self, x: Tensor, y: Tensor, mixing: Mixing | None = None) -> Tensor:
        with self.precision.autocast():
            return F.cross_entropy(self.net(x, self.relaxation() if mixing is None else mixing), y)

    def _beta_decay(self, alphas: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Compute the gradient of λ · mean logsumexp(alpha), with λ growing from 0 (β-DARTS, Ye et al. 2022)."""
        strength = self.config.beta_decay * self.epoch / self.config.epochs
        if not strength:
            return [None] * len(alphas)
        decay = torch.cat(list(self.net.architecture.logits().values())).logsumexp(dim=-1).mean()
        return torch.autograd.grad(strength * decay, alphas, allow_unused=True)

    def mixing(self) -> Mixing:
        mixing = self.projection.applied(self.relaxation())
        return {kind: weights + self.shift[kind] for kind, weights in mixing.items()} if self.shift else mixing

    def relaxation(self) -> Mixing:
        """Return the mixing weights that the alphas encode; under GDAS, drawn by them."""
        return self.net.architecture.mixing(
            self._sampled if self.config.sampling == "gdas" else None, auxiliary_skip=self.auxiliary_skip
        )

    def evaluation_mixing(self) -> Mixing:
        # GDAS trains one candidate per edge; the weights have never been trained under the mixture of all.
        mixing = self.net.architecture.mixing(
            _strongest if self.config.sampling == "gdas" else None, auxiliary_skip=self.auxiliary_skip
        )
        return self.projection.applied(mixing)

    def genotype(self) -> Genotype:
        return self.projection.genotype() if self.projection.done else super().genotype()

    def _sampled(self, logits: Tensor) -> Tensor:
        """Sample one candidate per edge from the softmax, with the gradient of the Gumbel-softmax (GDAS, Dong 2019)."""
        uniform = torch.rand(logits.shape, generator=self.generator, dtype=torch.float64).clamp_min(1e-300)
        gumbel = -(-uniform.log()).log()
        soft = torch.softmax((torch.log_softmax(logits, dim=-1) + gumbel.to(logits)) / self.temperature, dim=-1)
        hard = F.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft)
        return hard - soft.detach() + soft

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.alpha_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "projection": self.projection.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_optimizer(self.alpha_optimizer, state["optimizer"], "strategy.optimizer")
        expect_form(state["generator"], self.generator.get_state(), "strategy.generator")
        self.generator.set_state(state["generator"])
        self.projection.load_state_dict(state["projection"])


def _strongest(logits: Tensor) -> Tensor:
    """Select the candidate with the largest logit on every edge, as one-hot weights."""
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Add two gradients, either of which may be absent."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
