"""The maps of all candidates that leave a state, for mixing them in several ways."""

from __future__ import annotations

import torch
from torch import Tensor

from bionas_fast.kernels import batch_norm
from bionas_fast.ops.mixed_edges.autograd import Statistics, chosen_backend, geometry, kernels, pad_channels, term_maps
from bionas_fast.ops.mixed_edges.plan import Plan, Weights


def candidate_maps(
    x: Tensor, weights: Tensor, plan: Plan, statistics: Statistics, backend: str | None = None
) -> Tensor:
    """What :func:`mixed_edges` mixes in evaluation, forward only: [separable candidates + terms, N, H', W', C]."""
    kernel = kernels(chosen_backend(x, weights, backend))
    channels = x.shape[-1]
    state = pad_channels(x.to(weights.dtype).contiguous(), kernel)
    w = Weights.split(weights, plan, channels)
    separable = len(plan.separable.kernels)
    rows = separable + plan.separable.twice
    means, variances = statistics.widened(state.shape[-1])
    found: list[Tensor] = []

    def normalised(z: Tensor, rows: slice) -> Tensor:
        scale = batch_norm.rstd(variances[rows])
        shift = -means[rows] * scale
        scale, shift = (value.to(z.dtype)[:, None, None, None, :channels] for value in (scale, shift))
        return torch.addcmul(shift, z[..., :channels], scale)

    if separable:
        none = state.new_zeros(separable, dtype=torch.float64)
        _, z, *_ = kernel.edges_forward(
            state, w.separable, *geometry(plan), plan.edges, none, means[:rows], variances[:rows], ()
        )
        found.append(normalised(z, slice(plan.separable.twice, rows)))
    maps: list[Tensor] = []
    if plan.terms:
        maps, *_ = term_maps(state, w, plan, kernel)
    stacks = maps[: len(maps) - plan.identity]
    if stacks:
        found.append(normalised(torch.cat(stacks), slice(rows, None)))
    if plan.identity:
        found.append(state[None, ..., :channels])
    order = [*range(separable), *(separable + term.map for term in plan.terms)]
    return torch.cat(found)[order].to(x.dtype)
