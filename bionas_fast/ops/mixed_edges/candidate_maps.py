"""The maps of all candidates on the edges from a state, for mixing with several sets of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from bionas_fast.kernels import batch_norm
from bionas_fast.kernels.records import Moments
from bionas_fast.kernels.tables import table
from bionas_fast.ops.mixed_edges.autograd import chosen_backend
from bionas_fast.ops.mixed_edges.backends import find
from bionas_fast.ops.mixed_edges.layout import Layout
from bionas_fast.ops.mixed_edges.plan import Plan, Weights
from bionas_fast.ops.mixed_edges.statistics import Statistics


def candidate_maps(
    x: Tensor, weights: Tensor, plan: Plan, statistics: Statistics, backend: str | None = None
) -> Tensor:
    """Compute the maps that :func:`mixed_edges` mixes in evaluation, [separable candidates + terms, N, H', W', C]."""
    implementation = find(chosen_backend(x, weights, backend))
    precise = x.to(weights.dtype)
    layout = Layout.of(precise, implementation.multiple, implementation.most_images)
    implementation = implementation.of_images(layout.images)
    state = layout.pack(precise)
    w = Weights.split(weights, plan, layout.channels)
    separable, rows = plan.separable, plan.separable.normalisations
    running = layout.moments(statistics.mean, statistics.var)
    found: list[Tensor] = []

    def normalised(z: Tensor, moments: Moments) -> Tensor:
        scale = batch_norm.rstd(moments.var)
        shift = -moments.mean * scale
        scale, shift = (value.to(z.dtype)[:, None, None, None] for value in (scale, shift))
        return layout.unpack(torch.addcmul(shift, z, scale))

    stacks = implementation.stacks(state, w, plan, running)
    normalised_stacks = stacks[: len(stacks) - plan.identity]
    if plan.branches:
        found.append(normalised(normalised_stacks.pop(0), running.rows(slice(separable.twice, rows))))
    if normalised_stacks:
        found.append(normalised(torch.cat(normalised_stacks), running.rows(slice(rows, None))))
    if plan.identity:
        found.append(precise[None])
    all_maps = torch.cat(found)
    order = (*range(plan.branches), *(plan.branches + index for index in plan.terms.index))
    if order != (*range(len(all_maps)),):
        all_maps = all_maps[table(order, x.device)]
    return all_maps.to(x.dtype)
