"""BioNAS-DARTS: architecture parameters by gradient descent (Liu et al. 2019; BioNAS, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.data import BatchStream
from bionas_fast.nn import frozen_plasticity
from bionas_fast.runs.checkpoint import expect_form, load_optimizer
from bionas_fast.runtime import distributed
from bionas_fast.search.config import SearchConfig
from bionas_fast.search.method import MIXING, Strategy, frozen
from bionas_fast.search.methods import register_method
from bionas_fast.supernet import Mixing, Supernet

Batch = tuple[Tensor, Tensor]
#: The finite difference of the second order moves the weights by this much (Liu et al. 2019, footnote 2).
RADIUS = 0.01


@register_method("darts")
class Darts(Strategy):
    """First order: before every weight step, one Adam step of the alphas on a validation batch."""

    options = (
        *MIXING,
        "beta_decay",
        "sampling",
        "gdas_temperature",
        "alpha_learning_rate",
        "alpha_betas",
        "alpha_weight_decay",
    )

    def __init__(self, net: Supernet, config: SearchConfig, *rest: Any) -> None:
        super().__init__(net, config, *rest)
        self.alpha_optimizer = torch.optim.Adam(
            net.alpha_parameters(),
            config.alpha_learning_rate,
            betas=config.alpha_betas,
            weight_decay=config.alpha_weight_decay,
        )
        self.generator = torch.Generator().manual_seed(config.seed + 2)
        self.temperature = 1.0

    def prepare(self, epoch: int) -> None:
        super().prepare(epoch)
        first, last = self.config.gdas_temperature
        self.temperature = first + (last - first) * epoch / max(self.config.epochs - 1, 1)

    def before_weight_step(self, x: Tensor, y: Tensor, valid: BatchStream) -> None:
        if self.warming_up:
            return
        alphas = self.net.alpha_parameters()
        with frozen_plasticity(self.net):
            grads = self.gradients(distributed.part(x, y), distributed.part(*next(valid)))
        distributed.average(grads)
        if not all(g is None or torch.isfinite(g).all() for g in grads):
            self.precision.overflowed(f"the architecture's gradient is not finite in epoch {self.epoch + 1}")
            return
        for alpha, grad, decay in zip(alphas, grads, self._beta_decay(alphas), strict=True):
            alpha.grad = grad if decay is None else decay if grad is None else grad + decay
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad()

    def gradients(self, train: Batch, valid: Batch) -> Sequence[Tensor | None]:
        """Of the loss on a validation batch; for each architecture parameter, None where it is not used."""
        with frozen(self.net.weight_parameters()):
            return self.precision.gradients(self._loss(*valid), self.net.alpha_parameters())

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        with self.precision.autocast():
            return F.cross_entropy(self.net(x, self.mixing()), y)

    def _beta_decay(self, alphas: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The gradient of λ · mean logsumexp(alpha), λ growing from 0 (β-DARTS, Ye et al. 2022)."""
        strength = self.config.beta_decay * self.epoch / self.config.epochs
        if not strength:
            return [None] * len(alphas)
        decay = torch.cat(list(self.net.architecture.logits().values())).logsumexp(dim=-1).mean()
        return torch.autograd.grad(strength * decay, alphas, allow_unused=True)

    def mixing(self) -> Mixing:
        return self.net.architecture.mixing(self._sampled if self.config.sampling == "gdas" else None)

    def found(self) -> Mixing:
        # What GDAS trains is one candidate an edge; the mixture of all has never been seen by the weights.
        return self.net.architecture.mixing(_strongest if self.config.sampling == "gdas" else None)

    def _sampled(self, logits: Tensor) -> Tensor:
        """One candidate an edge, drawn by its softmax; the gradient is that of the Gumbel-softmax (GDAS, Dong 2019)."""
        uniform = torch.rand(logits.shape, generator=self.generator, dtype=torch.float64).clamp_min(1e-300)
        gumbel = -(-uniform.log()).log()
        soft = torch.softmax((torch.log_softmax(logits, dim=-1) + gumbel.to(logits)) / self.temperature, dim=-1)
        hard = F.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft)
        return hard - soft.detach() + soft

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.alpha_optimizer.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_optimizer(self.alpha_optimizer, state["optimizer"], "strategy.optimizer")
        expect_form(state["generator"], self.generator.get_state(), "strategy.generator")
        self.generator.set_state(state["generator"])


def _strongest(logits: Tensor) -> Tensor:
    """The likeliest candidate of every edge alone."""
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits)


@register_method("darts2")
class SecondOrderDarts(Darts):
    """The validation loss after a weight step on the train batch, by a finite difference (Liu et al. 2019, eq. 6-8).

    The step is taken with the optimiser's momentum and weight decay; Nesterov's correction and clipping are left out.
    Under learning rules other than back-propagation each gradient of a weight in these formulas is what the rule makes
    of it, the one that the weights do follow.
    """

    def gradients(self, train: Batch, valid: Batch) -> Sequence[Tensor | None]:
        alphas, weights = self.net.alpha_parameters(), list(self.net.weight_parameters())
        group = self.optimizer.param_groups[0]
        rate, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        with unchanged(self.net):
            start = [w.detach().clone() for w in weights]
            again = self._draws()
            with frozen(alphas):
                descent = _averaged(self.precision.gradients(self._loss(*train), weights), weights)
            with torch.no_grad():
                for w, grad in zip(weights, descent, strict=True):
                    moment = self.optimizer.state.get(w, {}).get("momentum_buffer")
                    grad = grad + decay * w
                    w.sub_(rate * (grad if moment is None else momentum * moment + grad))
            both = self.precision.gradients(self._loss(*valid), [*alphas, *weights])
            first, vector = both[: len(alphas)], _averaged(both[len(alphas) :], weights)
            radius = RADIUS / torch.linalg.vector_norm(torch.stack([v.norm() for v in vector]))
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    for w, w0, v in zip(weights, start, vector, strict=True):
                        w.copy_(w0 + sign * radius * v)
                again()
                with frozen(weights):
                    sides.append(self.precision.gradients(self._loss(*train), alphas))
        return [
            None
            if own is None
            else own
            if plus is None or minus is None
            else own - rate * (plus - minus) / (2 * radius)
            for own, plus, minus in zip(first, *sides, strict=True)
        ]

    def _draws(self) -> Callable[[], None]:
        """Returns what lets a pass draw what the next one draws: the sides of a difference must differ in w alone."""
        buffers, generator = [(own, own.clone()) for own in self.net.buffers()], self.generator.get_state()

        def again() -> None:
            for own, before in buffers:
                own.copy_(before)
            self.generator.set_state(generator)

        return again


def _averaged(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Over the processes; zeros where there is none."""
    filled = [torch.zeros_like(p) if grad is None else grad.clone() for grad, p in zip(grads, like, strict=True)]
    distributed.average(filled)
    return filled


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Whatever happens to parameters and buffers inside the block, afterwards they are what they were."""
    kept = [(own, own.detach().clone()) for own in (*net.parameters(), *net.buffers())]
    try:
        yield
    finally:
        with torch.no_grad():
            for own, before in kept:
                own.copy_(before)
