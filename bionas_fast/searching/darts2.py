"""Second-order BioNAS-DARTS: the gradient of α after a virtual weight step (Liu et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bionas_fast.nn import learned_feedback
from bionas_fast.runtime import distributed
from bionas_fast.searching.darts import Batch, Darts
from bionas_fast.searching.frozen import frozen
from bionas_fast.searching.names import register_method

#: Norm of the weight perturbation in the finite difference (Liu et al. 2019, footnote 2).
RADIUS = 0.01


@register_method("darts2")
class SecondOrderDarts(Darts):
    """Second order: the gradient of the validation loss after a virtual weight step (Liu et al. 2019, eq. 6-8).

    The implicit term is a finite difference of the training loss.

    The step is taken with the optimiser's momentum and weight decay; Nesterov's correction and clipping are left out.
    Under learning rules other than back-propagation each gradient of a weight in these formulas is the pseudo-gradient
    of its rule, which the weights follow in training.
    """

    def gradients(self, train: Batch, valid: Batch) -> Sequence[Tensor | None]:
        alphas, weights = self.net.alpha_parameters(), list(self.net.weight_parameters())
        learned = {*map(id, learned_feedback(self.net))}  # moves with the weights, but the radius is theirs
        group = self.optimizer.param_groups[0]
        rate = group["lr"]
        momentum = group["momentum"]
        decay = group["weight_decay"]
        with unchanged(self.net):
            start = [w.detach().clone() for w in weights]
            replay = self._replay()
            with frozen(alphas):
                descent = _averaged(self.precision.gradients(self._loss(*train), weights), weights)
            with torch.no_grad():
                for w, grad in zip(weights, descent, strict=True):
                    moment = self.optimizer.state.get(w, {}).get("momentum_buffer")
                    grad = grad + decay * w
                    w.sub_(rate * (grad if moment is None else momentum * moment + grad))
            both = self.precision.gradients(self._loss(*valid), [*alphas, *weights])
            first, vector = both[: len(alphas)], _averaged(both[len(alphas) :], weights)
            norms = [v.norm() for w, v in zip(weights, vector, strict=True) if id(w) not in learned]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            radius = RADIUS / norm.clamp_min(1e-30)  # without a gradient there is no implicit term
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    for w, w0, v in zip(weights, start, vector, strict=True):
                        w.copy_(w0 + sign * radius * v)
                replay()
                with frozen(weights):
                    sides.append(self.precision.gradients(self._loss(*train), alphas))
        grads = []
        for grad, plus, minus in zip(first, *sides, strict=True):
            if grad is not None and plus is not None and minus is not None:
                grad = grad - rate * (plus - minus) / (2 * radius)
            grads.append(grad)
        return grads

    def _replay(self) -> Callable[[], None]:
        """Return a function that restores buffers and generator, so that all passes make the same random draws.

        The sides of a finite difference must differ in the weights alone.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        generator = self.generator.get_state()

        def replay() -> None:
            for buffer, saved in buffers:
                buffer.copy_(saved)
            self.generator.set_state(generator)

        return replay


def _averaged(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Average gradients over the processes; absent ones become zeros."""
    filled = [torch.zeros_like(p) if grad is None else grad.clone() for grad, p in zip(grads, like, strict=True)]
    distributed.average(filled)
    return filled


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Restore the parameters and buffers of a network after the block."""
    saved = [(tensor, tensor.detach().clone()) for tensor in (*net.parameters(), *net.buffers())]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in saved:
                tensor.copy_(before)
