"""Batch normalisation from sums in Triton, specified by ``kernels.mixed_sum.normalised`` and ``kernels.batch_norm``.

One launch per pass adds up partial sums and does all the small arithmetic that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..records import Moments, Running, TermGradients, Terms
from ..tables import Row, table
from .triton_kernels import configurations, gradient_options, gradients_kernel, moment_options, moments_kernel

__all__ = ["Normalised", "backward", "configurations", "forward"]

#: Tensors of sums that one launch can read.
SUMS = 3


class Normalised(NamedTuple):
    """The normalisation of each term as an affine map of its map, float32 [T, C] each, and the moments of the maps."""

    weight: Tensor
    shift: Tensor
    moments: Moments


def forward(
    sums: Sequence[Tensor] | None,
    moments: Moments | None,
    terms: Terms,
    factors: Tensor | None,
    positions: int,
    running: Running | None = None,
    out: Moments | None = None,
) -> Normalised:
    """Normalise maps and scale them by the factors of terms.

    Args:
        sums: up to :data:`SUMS` tensors of partial sums, float32 [2, M_i, blocks_i, C], Σ and Σ of squares of the M
            normalised maps, which come first; in training.
        moments: the moments of these, otherwise.
        factors: [T]; None for ones.
        positions: the number of positions, at least 1.
        running: the running statistics, which move in training.
        out: written with the moments, float64 [M, C], in training; allocated by default.
    """
    if moments is None:
        assert sums is not None
        like, count = sums[0], sum(own.shape[1] for own in sums)
        mean, var = out or like.new_empty(2, count, like.shape[-1], dtype=torch.float64).unbind()
        sums = [own.contiguous() for own in sums]
    else:
        mean, var = moments.mean.contiguous(), moments.var.contiguous()
        like, count, sums = mean, len(mean), []
    channels = like.shape[-1]
    weight, shift = like.new_empty(2, len(terms.index), channels, dtype=torch.float32).unbind()
    launch = moment_options(channels, moments is None, factors is not None)
    programs = _programs(terms.index, count, tuple((own.shape[1], own.shape[2]) for own in sums))
    with torch.cuda.device_of(like):
        moments_kernel[len(programs), triton.cdiv(channels, launch["BLOCK_C"])](
            p_weight=weight,
            p_shift=shift,
            p_mean=mean,
            p_var=var,
            p_running_mean=weight if running is None else running.mean,
            p_running_var=weight if running is None else running.var,
            **{f"p_sums{number}": own for number, own in enumerate([*sums, *[weight] * (SUMS - len(sums))])},
            p_factors=weight if factors is None else factors.float().contiguous(),
            p_programs=table(programs, like.device),
            positions=positions,
            channels=channels,
            narrow=0 if running is None else running.mean.shape[1],
            momentum=0.0 if running is None else running.momentum,
            **launch,
        )
    return Normalised(weight, shift, Moments(mean, var))


def backward(
    sums: Tensor,
    moments: Moments,
    terms: Terms,
    factors: Tensor | None,
    positions: int,
    training: bool,
    out: Sequence[Tensor] | None = None,
) -> TermGradients:
    """Compute the gradients of the factors, float32, and of the maps.

    Args:
        sums: partial sums, float32 [E + T, blocks, C]: Σ gradient of each edge; Σ of its product with the map of each
            term or, without factors, with the normalised map.
        factors: [T]; None for ones, which have no gradient.
        training: whether the moments were those of the batch.
        out: written with a, b and d, float32; allocated by default.
    """
    count, channels = moments.mean.shape
    number = len(terms.index)
    sums = sums.contiguous()
    launch = gradient_options(channels, factors is not None)
    columns = triton.cdiv(channels, launch["BLOCK_C"])
    firsts, rows = _of_maps(terms, count)
    a, b, d = out or sums.new_empty(number + 2 * count, channels).split([number, count, count])
    factor_grads = sums.new_empty(columns, number if factors is not None else 0, dtype=torch.float32)
    with torch.cuda.device_of(sums):
        gradients_kernel[len(firsts) - 1, columns](
            p_factor_grads=factor_grads,
            p_a=a,
            p_b=b,
            p_d=d,
            p_sums=sums,
            p_mean=moments.mean.contiguous(),
            p_var=moments.var.contiguous(),
            p_factors=a if factors is None else factors.float().contiguous(),
            p_firsts=table(firsts, sums.device),
            p_terms=table(rows, sums.device),
            positions=positions if training else 0,
            blocks=sums.shape[1],
            channels=channels,
            edges=terms.edge_count,
            terms=number,
            normalised=count,
            **launch,
        )
    return TermGradients(factor_grads[0] if columns == 1 else factor_grads.sum(dim=0), a, b, d)


@lru_cache(maxsize=1024)
def _programs(index: tuple[int, ...], normalised: int, sizes: tuple[tuple[int, int], ...]) -> tuple[Row, ...]:
    """Describe the programs of :func:`moments_kernel`: one per term, and one per map without a term.

    Args:
        sizes: the numbers of maps and of blocks of each tensor of sums; none if the moments are given.
    """
    places = [
        (base, own * blocks, (maps + own) * blocks, blocks)
        for base, (maps, blocks) in enumerate(sizes)
        for own in range(maps)
    ]
    places += [(0, 0, 0, 0)] * (max((normalised, *(number + 1 for number in index))) - len(places))
    seen: set[int] = set()
    programs: list[Row] = []
    for term, number in enumerate(index):
        own = number < normalised
        programs.append((number, term, int(own and number not in seen), int(own), *places[number]))
        seen.add(number)
    programs += [(number, -1, 1, 1, *places[number]) for number in range(normalised) if number not in seen]
    return tuple(programs)


@lru_cache(maxsize=1024)
def _of_maps(terms: Terms, normalised: int) -> tuple[Row, tuple[Row, ...]]:
    """Sort the terms by map: the first of each map, and (term, edge) of each."""
    maps = max(normalised, max(terms.index, default=-1) + 1)
    order = sorted(range(len(terms.index)), key=terms.index.__getitem__)
    firsts = accumulate((terms.index.count(number) for number in range(maps)), initial=0)
    return tuple(firsts), tuple((term, terms.edges[term]) for term in order)
