"""All separable candidates of the edges that leave a state, put together from the stage and the mixed sum.

This is the specification, made of the parts' references, and what runs wherever the parts are not fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import batch_norm


class Composition(NamedTuple):
    """The parts; each as its reference says.

    Branches are counted through: first the ``twice`` ones that have a second stage (same kernel, stride 1, dilation 1).
    """

    stage_forward: Callable[..., Any]
    stage_backward: Callable[..., Any]
    sum_forward: Callable[..., Any]
    sum_backward: Callable[..., Any]

    def forward(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        kernels: Sequence[int],
        dilations: Sequence[int],
        stride: int,
        edges: Sequence[int],
        count: int,
        mixing: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        into: Sequence[Tensor],
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """out[e] = into[e] + Σ_{branches k of e} mixing[k] · BN(z_k).

        Args:
            x: the state, [N, H, W, C].
            weights: depthwise and pointwise of the first stages, then of the second ones, as the stage takes them.
            kernels, dilations: of the first stage of the K branches.
            edges: the edge of each branch.
            count: how many edges there are.
            mixing: float64 [K].
            mean, var: float64 [twice + K, C], behind the first stages of two and then behind the K last ones; None for
                those of this batch.
            into: a tensor [N, H_out, W_out, C] for each edge, or none.

        Returns:
            ``count`` tensors [N, H_out, W_out, C]; z [K, N, H_out, W_out, C], in front of the last normalisations; mean
            and variance of this pass.
        """
        depthwise1, pointwise1, depthwise2, pointwise2 = weights
        twice = len(pointwise2)
        z, *totals = self.stage_forward(x, depthwise1, pointwise1, kernels, dilations, stride, None, None)
        positions = z[0].numel() // z.shape[-1]
        first = [total[:twice] for total in totals]
        last = [total[twice:] for total in totals]
        if twice:
            m, v = batch_norm.moments(*first, positions) if mean is None else (mean[:twice], var[:twice])  # type: ignore[index]
            z2, *totals = self._second(z[:twice], m, batch_norm.rstd(v), depthwise2, pointwise2, kernels)
            z = torch.cat([z2, z[twice:]])
            last = [torch.cat(pair) for pair in zip(totals, last, strict=True)]
        if mean is None:
            stages = [batch_norm.moments(*last, positions)]
            mean, var = (torch.cat(rows) for rows in zip(*([(m, v)] if twice else []), *stages, strict=True))
        assert var is not None
        scale = mixing[:, None] * batch_norm.rstd(var[twice:])
        offset = scale.new_zeros(count, scale.shape[1])
        offset.index_add_(0, torch.tensor(edges, device=x.device), -scale * mean[twice:])
        out = self.sum_forward([z], range(len(kernels)), edges, scale.to(x.dtype), offset.to(x.dtype), into)
        return out, z, mean, var

    def backward(
        self,
        grads: Sequence[Tensor],
        z: Tensor,
        mean: Tensor,
        var: Tensor,
        training: bool,
        x: Tensor,
        weights: Sequence[Tensor],
        feedback: Sequence[Tensor],
        kernels: Sequence[int],
        dilations: Sequence[int],
        stride: int,
        edges: Sequence[int],
        mixing: Tensor,
        weights_wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What goes back; arguments as in :meth:`forward`, and what it returned.

        The maps between the two stages are computed again.

        Args:
            grads: of ``out``.
            training: whether mean and variance were those of the batch.
            feedback: laid out like the weights; none if only the gradient of ``mixing`` is wanted.

        Returns:
            The gradient of ``mixing``, float64; the error at x; the exact gradients of the weights, flat, one after the
            other. Empty where not wanted.
        """
        twice = len(weights[3])
        positions = z[0].numel() // z.shape[-1]
        rstd = batch_norm.rstd(var)
        branches = range(len(kernels))
        grad_sum, products = self.sum_backward([z], branches, edges, grads)
        grad_sum = grad_sum[torch.tensor(edges, device=x.device)]
        normalised = rstd[twice:] * (products - mean[twice:] * grad_sum)
        grad_mixing = normalised.sum(dim=1)
        if not feedback:
            return grad_mixing, x.new_empty(0), x.new_empty(0)
        factor = mixing[:, None]
        b, d = batch_norm.backward(
            mean[twice:], rstd[twice:], factor * grad_sum, factor * normalised, positions, training
        )
        affine = [value.to(x.dtype) for value in (factor * rstd[twice:], b, d)]
        stacks, sources = [grad[None] for grad in grads], list(edges)
        second = [x.new_empty(0), x.new_empty(0)]
        if twice:
            channels = weights[1].shape[-1]  # x may have more, which are zero
            depthwise, pointwise = weights[0][: _taps(kernels[:twice]) * channels], weights[1][:twice]
            z1, *_ = self.stage_forward(x, depthwise, pointwise, kernels[:twice], dilations[:twice], stride, None, None)
            m, r = mean[:twice], rstd[:twice]
            own, own_sum, own_normalised, *second = self.stage_backward(
                stacks, sources[:twice], z[:twice], *(value[:twice] for value in affine), z1, *weights[2:],
                *feedback[2:], kernels[:twice], (1,) * twice, 1, r.to(x.dtype), (-m * r).to(x.dtype), weights_wanted,
            )  # fmt: skip
            b, d = batch_norm.backward(m, r, own_sum, own_normalised, positions, training)
            affine = [
                torch.cat([mine.to(x.dtype), theirs[twice:]]) for mine, theirs in zip((r, b, d), affine, strict=True)
            ]
            stacks.append(own)
            sources[:twice] = range(len(grads), len(grads) + twice)
            z = torch.cat([z1, z[twice:]])
        grad_x, _, _, *first = self.stage_backward(
            stacks, sources, z, *affine, x, *weights[:2], *feedback[:2], kernels, dilations, stride, None, None,
            weights_wanted,
        )  # fmt: skip
        return grad_mixing, grad_x, torch.cat([grad.flatten() for grad in (*first, *second)])

    def _second(
        self, z1: Tensor, mean: Tensor, rstd: Tensor, depthwise: Tensor, pointwise: Tensor, kernels: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale, shift = rstd.to(z1.dtype), (-mean * rstd).to(z1.dtype)
        twice = len(pointwise)
        return self.stage_forward(z1, depthwise, pointwise, kernels[:twice], (1,) * twice, 1, scale, shift)


def _taps(kernels: Sequence[int]) -> int:
    return sum(k * k for k in kernels)
