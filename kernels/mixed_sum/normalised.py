"""A mixed sum of maps with batch normalisation behind them, put together from the plain one.

This is the specification, made of the sum's reference, and what runs wherever the two are not fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import batch_norm


class NormalisedSum(NamedTuple):
    """The plain sum; as its reference says.

    Term t is map ``index[t]`` in the sum of edge ``edges[t]``. The maps [N, H, W, C] lie in stacks and are counted
    through; the first M are normalised, those behind them are not.
    """

    sum_forward: Callable[..., Any]
    sum_backward: Callable[..., Any]

    def forward(
        self,
        maps: Sequence[Tensor],
        index: Sequence[int],
        edges: Sequence[int],
        count: int,
        factors: Tensor,
        total: Tensor,
        squares: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        into: Sequence[Tensor],
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """out[e] = into[e] + Σ_{terms t of e} factors[t] · BN(map of t).

        Args:
            count: how many edges there are.
            factors: float64 [T].
            total, squares: Σ z and Σ z² of the maps that are normalised, float64 [M, C].
            mean, var: float64 [M, C]; None for those of this batch.
            into: a tensor for each edge, or none.

        Returns:
            ``count`` tensors; mean and variance of this pass.
        """
        like = maps[0]
        if mean is None or var is None:
            mean, var = batch_norm.moments(total, squares, like[0].numel() // like.shape[-1])
        means, rstds = _for_all(mean, var, maps)
        rows, sums = (torch.tensor(numbers, device=like.device) for numbers in (index, edges))
        weight = factors[:, None] * rstds[rows]
        offset = weight.new_zeros(count, weight.shape[1]).index_add_(0, sums, -weight * means[rows])
        return self.sum_forward(maps, index, edges, weight.to(like.dtype), offset.to(like.dtype), into), mean, var

    def backward(
        self,
        maps: Sequence[Tensor],
        index: Sequence[int],
        edges: Sequence[int],
        factors: Tensor,
        mean: Tensor,
        var: Tensor,
        training: bool,
        grads: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What goes back; arguments as in :meth:`forward`, and what it returned.

        Args:
            training: whether mean and variance were those of the batch.
            grads: of ``out``.

        Returns:
            The gradient of ``factors``, float64; a [T, C], b and d [M, C], such that the gradient of map k is
            Σ_{terms t of k} a[t] · (gradient of its edge) + b[k] · map + d[k].
        """
        like = maps[0]
        means, rstds = _for_all(mean, var, maps)
        rows, sums = (torch.tensor(numbers, device=like.device) for numbers in (index, edges))
        grad_sum, products = self.sum_backward(maps, index, edges, grads)
        grad_sum = grad_sum[sums]
        normalised = rstds[rows] * (products - means[rows] * grad_sum)  # Σ grad · ẑ of every term
        both = (
            rstds.new_zeros(rstds.shape).index_add_(0, rows, factors[:, None] * value)[: len(mean)]
            for value in (grad_sum, normalised)
        )
        positions = grads[0].numel() // like.shape[-1]
        affine = batch_norm.backward(mean, rstds[: len(mean)], *both, positions, training)
        a, b, d = (value.to(like.dtype) for value in (factors[:, None] * rstds[rows], *affine))
        return normalised.sum(dim=1), a, b, d


def _for_all(mean: Tensor, var: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and 1/√(var + ε) of every map; 0 and 1 for those that are not normalised."""
    missing = (0, 0, 0, sum(map(len, maps)) - len(mean))
    pad = torch.nn.functional.pad
    return pad(mean, missing), pad(batch_norm.rstd(var), missing, value=1.0)
