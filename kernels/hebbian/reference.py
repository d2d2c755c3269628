"""The specification of Hebbian updates in plain PyTorch, without unfolding patches.

With u = W ⋆ x, patches x_p and an activity y computed from u at every position, every rule is

    Δ_k = 1/P · (Σ_p y_pk x_p − decay_k),

and the first term is the weight gradient of a convolution. P is the number of positions in the whole batch, so neither
batch size nor resolution changes the step. Channels compete within their group.

=========  ==========================================  ============================  ==================================
rule       activity y                                  decay_k                       source
=========  ==========================================  ============================  ==================================
plain      u                                           0                             Hebb 1949
hebb       u_p/‖u_p‖, of patches x_p/‖x_p‖             0                             BioNAS, section 3.1
oja        u                                           Σ y_k² W_k                    Oja 1982
instar     u                                           Σ y_k W_k                     Grossberg 1976
hard_wta   1 at the largest u (or the k largest), or 0 Σ y_k W_k                     Rumelhart, Zipser 1985
soft_wta   softmax(t·u)                                Σ y_k W_k                     Nowlan 1990; Lagani et al. 2022
softhebb   softmax(t·u), negative but at the largest   Σ y_k u_k W_k                 Journé et al., ICLR 2023
hpca       u                                           Σ_{j≤k} Σ_p y_pk y_pj W_j     Sanger 1989; Lagani et al. 2022
hpca_relu  ReLU(u)                                     Σ_{j≤k} Σ_p y_pk y_pj W_j     Lagani et al. 2022, code
bcm        u (u − θ_k), θ_k a mean of u_k²             0                             Bienenstock et al. 1982; Intrator,
                                                                                     Cooper 1992
=========  ==========================================  ============================  ==================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..window import Window
from .records import RULES

NORM_EPSILON = 1e-12  # lower bound of the norms of patches and outputs
MAX_EPSILON = 1e-30


def activity(u: Tensor, rule: str, temperature: float, groups: int, winners: int = 1) -> Tensor:
    """Compute the activity y under a rule.

    Args:
        u: [N, K, *positions]; another similarity of patches and filters may replace it in a competition.
        temperature: t, the factor of u in a softmax.
        groups: the number of groups within which channels compete; divides K.
        winners: the number of channels of a group that win at every position.

    Returns:
        y, shaped like u.
    """
    kind = RULES[rule].activity
    if rule == "bcm":
        return u * (u - mean_square(u).view(-1, *[1] * (u.dim() - 2)))
    if rule == "hpca_relu":
        return u.relu()
    if kind == "linear":
        return u
    grouped = u.unflatten(1, (groups, -1))
    if kind == "normalised":
        y = F.normalize(grouped, dim=2, eps=NORM_EPSILON)
    else:
        best = grouped.topk(winners, dim=2).indices if winners > 1 else grouped.argmax(dim=2, keepdim=True)
        winner = torch.zeros_like(grouped).scatter_(2, best, 1.0)
        y = winner
        if kind != "hard":
            y = torch.softmax(temperature * grouped, dim=2)
        if kind == "competing":
            y = y * (2 * winner - 1)
    return y.flatten(1, 2)


def mean_square(u: Tensor) -> Tensor:
    """Compute the mean of u² over batch and positions, [K]: the threshold θ of ``bcm``."""
    return u.square().transpose(0, 1).flatten(1).mean(dim=1)


def patch_norm(x: Tensor, kernel: Sequence[int], window: Window) -> Tensor:
    """Compute ‖x_p‖ of every patch of every group, [N, groups, *positions], by a box filter of x²."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    box = x.new_ones(window.groups, x.shape[1] // window.groups, *kernel)
    squares = convolve(x.square(), box, None, *window)
    return squares.clamp_min(0).sqrt()


def delta(weight: Tensor, x: Tensor, u: Tensor, y: Tensor, rule: str, window: Window) -> Tensor:
    """Compute Δ.

    Args:
        weight: W, [K, C/groups, *kernel].
        x: [N, C, *positions].
        u: W ⋆ x, [N, K, *positions]; read by softhebb only.
        y: the activity, shaped like u.
        rule: one of RULES; determines the decay.

    Returns:
        Shaped like ``weight``.
    """
    decay = RULES[rule].decay
    pushed = y
    if rule == "hebb":
        norm = patch_norm(x, weight.shape[2:], window).clamp_min(NORM_EPSILON)
        pushed = y / norm.repeat_interleave(y.shape[1] // window.groups, dim=1)
    outer = outer_product(weight, x, pushed, window)
    if decay == "lower":
        outer = outer - lower(weight, y, window.groups)
    elif decay != "none":
        rows = y.transpose(0, 1).flatten(1)
        factor = {"square": rows, "activity": torch.ones_like(rows), "output": u.transpose(0, 1).flatten(1)}[decay]
        total = (rows * factor).sum(dim=1)
        outer = outer - total.view(-1, *[1] * (weight.dim() - 1)) * weight
    return outer / max(y.numel() // y.shape[1], 1)


def outer_product(weight: Tensor, x: Tensor, y: Tensor, window: Window) -> Tensor:
    """Compute Σ_p y_pk x_p, the weight gradient of a convolution; only the shape of ``weight`` is read."""
    stride, padding, dilation, groups = window
    geometry = stride, padding, dilation, False, [0] * len(stride), groups
    return torch.ops.aten.convolution_backward(y, x, weight, None, *geometry, [False, True, False])[1]


def lower(weight: Tensor, y: Tensor, groups: int) -> Tensor:
    """Compute Σ_{j≤k} Σ_p y_pk y_pj W_j, shaped like ``weight``."""
    rows = y.transpose(0, 1).flatten(1).unflatten(0, (groups, -1))
    gram = (rows @ rows.mT).tril()
    return (gram @ weight.flatten(1).unflatten(0, (groups, -1))).view_as(weight)


def normalise(weight: Tensor, how: str) -> Tensor:
    """Normalise W after an update: ``clamp`` to ±1, ``unit`` L2 norm of every filter, otherwise unchanged."""
    if how == "clamp":
        return weight.clamp(-1, 1)
    if how == "unit":
        return F.normalize(weight.flatten(1), dim=1, eps=NORM_EPSILON).view_as(weight)
    return weight


def scaled(delta: Tensor, how: str, groups: int) -> Tensor:
    """Scale Δ before it is applied: with ``max``, divide by the largest magnitude in its group."""
    if how != "max":
        return delta
    split = delta.flatten(1).unflatten(0, (groups, -1))
    return (split / (split.abs().amax(dim=(1, 2), keepdim=True) + MAX_EPSILON)).view_as(delta)
