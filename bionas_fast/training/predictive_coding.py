"""Predictive-coding networks: activities settle by local errors, and then the weights learn by these."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def predictive_coding(
    network: nn.Sequential,
    images: Tensor,
    labels: Tensor,
    share: float,
    *,
    steps: int,
    rate: float,
    nudge: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the energy to those of a network's weights (Rao & Ballard 1999; Whittington & Bogacz 2017).

    Layer l predicts the activities x_l from those below, f_l(x_{l-1}), with x_0 the images. The energy of an image is

        E = ½ Σ_l ‖x_l - f_l(x_{l-1})‖² + β CE(f_L(x_{L-1}), label)

    Activities begin at their predictions, where only the last term is not zero, and take ``steps`` steps down its
    gradient, each of which reads the errors of a layer and of the next. Then ∂E/∂W reads the error of its own layer and
    the activities below. At equilibrium the error of a layer is that of the next through the transposed Jacobian, as in
    back-propagation; the activities at which it is taken differ by the order of β.

    Args:
        network: layers with weights, nonlinearities and pools, in a sequence.
        images: [N, C, H, W].
        labels: int64 [N].
        share: factor of the gradients.
        steps: number of steps of the activities.
        rate: their step size.
        nudge: β; gradients are divided by it.

    Returns:
        The cross-entropy of the forward pass, a scalar, and its logits [N, classes].
    """
    layers = _layers(network)

    def energy(activities: Sequence[Tensor]) -> Tensor:
        """Compute the sum over the batch."""
        *predicted, logits = (layer(x) for layer, x in zip(layers, [images, *activities], strict=True))
        errors = ((x - own).square().sum() / 2 for x, own in zip(activities, predicted, strict=True))
        return sum(errors, nudge * F.cross_entropy(logits, labels, reduction="sum"))

    with torch.no_grad():
        activities = [images]
        for layer in layers:
            activities.append(layer(activities[-1]))
        logits, activities = activities[-1], activities[1:-1]
    for _ in range(steps if activities else 0):
        leaves = [x.requires_grad_() for x in activities]
        grads = torch.autograd.grad(energy(leaves), leaves)
        activities = [x.detach() - rate * grad for x, grad in zip(leaves, grads, strict=True)]
    (share / (nudge * len(labels)) * energy([x.detach() for x in activities])).backward()
    return F.cross_entropy(logits, labels), logits


def _layers(network: nn.Sequential) -> list[nn.Sequential]:
    """Divide a network into layers: modules with weights, each with what follows it up to the next."""
    modules = list(network)
    begins = [place for place, module in enumerate(modules) if isinstance(module, (nn.Linear, nn.Conv2d))]
    ends = [0, *begins[1:], len(modules)]  # what precedes the first belongs to it
    return [nn.Sequential(*modules[first:last]) for first, last in pairwise(ends)]
