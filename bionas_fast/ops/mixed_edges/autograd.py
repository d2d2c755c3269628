"""All candidates of all edges that leave a state of a cell, mixed: one op with one backward pass.

The candidates read the same state, so one pass over it serves all of them. Behind each stands a batch normalisation,
an affine map per channel that the next kernel applies as it reads, and whose backward pass is an affine map that the
previous kernel applies as it reads: neither is ever written to memory. What is written are the maps in front of the
last normalisations; the mixed sum reads each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bionas_fast import backends, native, torch_private
from bionas_fast.errors import InputError
from bionas_fast.kernels import batch_norm
from bionas_fast.kernels.factorized_reduce import reference as factorized_reduce
from bionas_fast.kernels.mixed_sum.normalised import NormalisedSum
from bionas_fast.kernels.separable_edges.composition import Composition
from bionas_fast.ops.mixed_edges.plan import POOLS, Plan, Weights

backends.declare("mixed_edges", native=native.obstacle, triton=backends.triton_obstacle)


@dataclass
class Statistics:
    """Running mean and variance, [M + K, C]: the M first normalisations of two, then those behind the K maps."""

    mean: Tensor
    var: Tensor
    momentum: float = 0.1

    def update(self, mean: Tensor, var: Tensor, positions: int) -> None:
        """Move on towards those of a batch; ``var`` is the biased one, and both may have more channels."""
        if not positions:
            return
        positions = batch_norm.all_positions(positions)
        unbiased = var * (positions / max(positions - 1, 1))
        for running, value in ((self.mean, mean), (self.var, unbiased)):
            running.lerp_(_narrowed(value, running.shape[1]).to(running.dtype), self.momentum)

    def widened(self, channels: int) -> tuple[Tensor, Tensor]:
        """Both in float64, with so many channels."""
        padding = (0, channels - self.mean.shape[1])
        pad = torch.nn.functional.pad
        return pad(self.mean.double(), padding), pad(self.var.double(), padding, value=1.0)


class Kernels(NamedTuple):
    """What a backend implements; each function as its reference says.

    Attributes:
        parts: what the separable edges are put together from where they are not fused.
        multiple: what the number of channels must be a multiple of.
    """

    edges_forward: Callable[..., Any]
    edges_backward: Callable[..., Any]
    normalised_forward: Callable[..., Any]
    normalised_backward: Callable[..., Any]
    mixed_forward: Callable[..., Any]
    pools_forward: Callable[..., Any]
    pools_backward: Callable[..., Any]
    reductions_forward: Callable[..., Any]
    reductions_backward: Callable[..., Any]
    parts: Composition
    multiple: int = 1


def _native(name: str) -> Callable[..., Any]:
    # The overload itself: to look for it at every call takes longer than some of the calls.
    return getattr(torch.ops.bionas_fast_native, name).default


def composition(backend: str) -> Composition:
    """The stage and the mixed sum of a backend, and the separable edges put together from them."""
    if backend == "native":
        names = ("stage_forward", "stage_backward", "mixed_sum", "mixed_sum_backward")
        return Composition(*(_native(name) for name in names))
    stage, mixed = (import_module(f"bionas_fast.kernels.{op}.{backend}") for op in ("separable_stage", "mixed_sum"))
    return Composition(stage.forward, stage.backward, mixed.forward, mixed.backward)


# Found so far, by backend; a compiler would look through a cache.
_kernels: dict[str, Kernels] = {}


def kernels(backend: str) -> Kernels:
    """Of ``reference`` for any tensor, of ``native`` for float32 on the CPU, of ``triton`` for GPUs."""
    if backend not in _kernels:
        _kernels[backend] = _find_kernels(backend)
    return _kernels[backend]


def _find_kernels(backend: str) -> Kernels:
    parts = composition(backend)
    if backend == "native":
        return Kernels(
            edges_forward=_native("separable_edges"),
            edges_backward=_native("separable_edges_backward"),
            normalised_forward=_native("normalised_sum"),
            normalised_backward=_native("normalised_sum_backward"),
            mixed_forward=parts.sum_forward,
            pools_forward=_native("pools"),
            pools_backward=_native("pools_backward"),
            reductions_forward=_native("factorized_reduce"),
            reductions_backward=_native("factorized_reduce_backward"),
            parts=parts,
            multiple=16,
        )
    pools = import_module(f"bionas_fast.kernels.pools.{backend}")
    return Kernels(
        **_unfused(parts),
        mixed_forward=parts.sum_forward,
        pools_forward=pools.forward,
        pools_backward=pools.backward,
        reductions_forward=factorized_reduce.forward,
        reductions_backward=factorized_reduce.backward,
        parts=parts,
    )


def _unfused(parts: Composition) -> dict[str, Any]:
    """What takes batch normalisation's statistics over all processes."""
    normalised = NormalisedSum(parts.sum_forward, parts.sum_backward)
    return {
        "edges_forward": parts.forward,
        "edges_backward": parts.backward,
        "normalised_forward": normalised.forward,
        "normalised_backward": normalised.backward,
    }


#: Called in the backward pass: the feedback, flat like the weights, and that of the identities, [edges, C].
MakeFeedback = Callable[[], tuple[Tensor, Tensor | None]]


def mixed_edges(
    x: Tensor,
    mixing: Tensor,
    into: Sequence[Tensor],
    weights: Tensor,
    plan: Plan,
    statistics: Statistics,
    make_feedback: MakeFeedback,
    training: bool,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """For each edge e: into[e] + Σ_{maps of e} mixing · BN(map), the identity without BN.

    Args:
        x: the state, [N, H, W, C].
        mixing: of the separable candidates, then of the terms of ``plan``.
        into: a tensor [N, H_out, W_out, C] for each edge, or none.
        weights: flat, as :meth:`Weights.split` takes them apart.
        statistics: updated in training, used otherwise.
        make_feedback: called once in the backward pass, and only where an error or a weight gradient needs it.
        training: whether batch normalisation uses the statistics of this batch.

    Returns:
        As many tensors [N, H_out, W_out, C] as edges.

    Raises:
        InputError: in training there is a single position, whose variance is 0.
    """
    if training and len(statistics.mean) and not batch_norm.shared():
        images, height, width, _ = x.shape
        if images * -(-height // plan.stride) * -(-width // plan.stride) == 1:
            raise InputError(
                "batch normalisation in training needs more than one value per channel, and of one image one pixel is "
                "left: expected a larger batch or larger images"
            )
    chosen = chosen_backend(x, weights, backend)
    precise = x.to(weights.dtype)
    into = [tensor.to(precise.dtype) for tensor in into]
    kernel = kernels(chosen)
    if training and batch_norm.shared():  # the fused ones take the statistics of this process
        kernel = kernel._replace(**_unfused(kernel.parts))
    out = _MixedEdges.apply(precise, mixing, weights, plan, statistics, make_feedback, training, kernel, *into)
    return out if precise is x else tuple(tensor.to(x.dtype) for tensor in out)


def chosen_backend(x: Tensor, weights: Tensor, backend: str | None) -> str:
    """Sums over whole batches are taken in the weights' precision: under autocast that is float32."""
    chosen = backends.choose("mixed_edges", x.device.type, backend)
    if weights.dtype != torch.float32 or not x.numel():
        return "reference"
    if chosen == "triton" and torch_private.has_dispatch_modes():
        return "reference"  # fake tensors
    return chosen


def _without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """Runs in the dtypes that the tensors have."""

    @wraps(method)
    def run(ctx: Any, *args: Any) -> Any:
        device = args[0].device.type
        if not torch.is_autocast_enabled(device):
            return method(ctx, *args)
        with torch.autocast(device, enabled=False):
            return method(ctx, *args)

    return run


class _MixedEdges(torch.autograd.Function):
    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        x: Tensor,
        mixing: Tensor,
        weights: Tensor,
        plan: Plan,
        statistics: Statistics,
        make_feedback: MakeFeedback,
        training: bool,
        kernel: Kernels,
        *into: Tensor,
    ) -> tuple[Tensor, ...]:
        channels = x.shape[-1]
        state = pad_channels(x.contiguous(), kernel)
        w = Weights.split(weights, plan, channels)
        separable = len(plan.separable.kernels)
        rows = separable + plan.separable.twice
        factors = mixing.double()
        means, variances = None, None
        if not training:
            means, variances = statistics.widened(state.shape[-1])
        found: list[tuple[Tensor, Tensor]] = []
        out: Sequence[Tensor] = [pad_channels(tensor.contiguous(), kernel) for tensor in into]
        z = mean = var = None
        if separable:
            out, z, mean, var = kernel.edges_forward(
                state,
                w.separable,
                *geometry(plan),
                plan.edges,
                factors[:separable],
                None if means is None else means[:rows],
                None if variances is None else variances[:rows],
                out,
            )
            found.append((mean, var))
        maps: list[Tensor] = []
        term_mean = term_var = None
        if plan.terms:
            maps, total, squares = term_maps(state, w, plan, kernel)
            out, term_mean, term_var = kernel.normalised_forward(
                maps,
                plan.index,
                plan.sums,
                plan.edges,
                factors[separable:],
                total,
                squares,
                None if means is None else means[rows:],
                None if variances is None else variances[rows:],
                out,
            )
            found.append((term_mean, term_var))
        if training and found:
            mean_now, var_now = (torch.cat(column) for column in zip(*found, strict=True))
            statistics.update(mean_now, var_now, out[0].numel() // state.shape[-1])
        if plan.pools:  # made again in the backward pass: a hundredth of its time, a thirtieth of the memory
            del maps[plan.reductions > 0]
        ctx.save_for_backward(state, mixing, weights, z, mean, var, term_mean, term_var, *maps)
        ctx.static = plan, make_feedback, training, kernel, channels, len(into)
        return tuple(_narrowed(tensor, channels) for tensor in out)

    @staticmethod
    @_without_autocast
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        plan, make_feedback, training, kernel, channels, given = ctx.static
        state, mixing, weights, z, mean, var, term_mean, term_var, *maps = ctx.saved_tensors
        want_x, _, want_weights, *_ = ctx.needs_input_grad
        separable = len(plan.separable.kernels)
        grads = tuple(grad.contiguous() for grad in grads)
        passed = grads if given else ()  # what made the tensors added to need not copy them again
        grads = tuple(pad_channels(grad, kernel) for grad in grads)
        feedback = identity_feedback = None
        if want_x or want_weights:
            flat, identity_feedback = make_feedback()
            feedback = Weights.split(flat, plan, channels)
        w = Weights.split(weights, plan, channels)
        factors = mixing.double()
        down: list[Tensor] = []
        weight_grads: list[Tensor] = []
        grad_mixing: list[Tensor] = []
        if separable:
            grad_factors, grad_x, grad_weights = kernel.edges_backward(
                grads,
                z,
                mean,
                var,
                training,
                state,
                w.separable,
                feedback.separable if feedback else [],
                *geometry(plan),
                factors[:separable],
                want_weights,
            )
            grad_mixing.append(grad_factors)
            down.append(grad_x)
            weight_grads.append(grad_weights)
        if plan.terms:
            if plan.pools:
                maps.insert(plan.reductions > 0, kernel.pools_forward(state, plan.stride)[0])
            grad_factors, *affine = kernel.normalised_backward(
                maps, plan.index, plan.sums, factors[separable:], term_mean, term_var, training, grads
            )
            grad_mixing.append(grad_factors)
            others = _Others(plan, kernel, state, maps, grads, *affine)
            if feedback and plan.reductions:
                grad_x, *reduce_grads = others.reductions(w, feedback, want_weights)
                weight_grads += reduce_grads
                down.append(grad_x)
            if want_x and plan.pools:
                down.append(others.pools())
        grad_x = None
        if want_x:
            grad_x = _total(down, kernel, grads if plan.identity else (), identity_feedback)
            grad_x = _narrowed(grad_x, channels)
        grad_weights = None
        if want_weights:
            flat = [grad.flatten() for grad in weight_grads]
            grad_weights = flat[0] if len(flat) == 1 else torch.cat([weights.new_empty(0), *flat])
        return (grad_x, torch.cat(grad_mixing).to(mixing.dtype), grad_weights, *[None] * 5, *passed)


def geometry(plan: Plan) -> tuple[Any, ...]:
    """Kernels, dilations, stride and edges of the separable candidates."""
    kernels, dilations, edges, _ = plan.separable
    return kernels, dilations, plan.stride, edges


def pad_channels(x: Tensor, kernel: Kernels) -> Tensor:
    """With zeros for more channels, as the kernels take them."""
    missing = -x.shape[-1] % kernel.multiple
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def _narrowed(x: Tensor, channels: int) -> Tensor:
    """Without what :func:`pad_channels` added."""
    return x if x.shape[-1] == channels else x[..., :channels].contiguous()


def term_maps(state: Tensor, w: Weights, plan: Plan, kernel: Kernels) -> tuple[list[Tensor], Tensor, Tensor]:
    """The stacks of maps that the terms read; Σ z and Σ z² of those that are normalised."""
    maps, sums = [], []
    if plan.reductions:
        z, *totals = kernel.reductions_forward(state, w.reduce1, w.reduce2)
        maps.append(z)
        sums.append(totals)
    if plan.pools:
        z, *totals = kernel.pools_forward(state, plan.stride)
        maps.append(z)
        sums.append(totals)
    if plan.identity:
        maps.append(state[None])
    if len(sums) == 1:
        return maps, *sums[0]
    none = state.new_empty(0, state.shape[-1], dtype=torch.float64)
    total, squares = (torch.cat(column) for column in zip((none, none), *sums, strict=True))
    return maps, total, squares


@dataclass
class _Others:
    """The backward pass of everything that is not separable.

    The gradient of map k is Σ_{terms t of k} a[t] · grad of its edge + b[k] · z[k] + d[k].
    """

    plan: Plan
    kernel: Kernels
    state: Tensor
    maps: Sequence[Tensor]
    grads: Sequence[Tensor]
    a: Tensor
    b: Tensor
    d: Tensor

    def reductions(self, w: Weights, feedback: Weights, weights: bool) -> tuple[Tensor, ...]:
        """The error at the state, and the gradients of the two weights."""
        count = self.plan.reductions
        terms = [term for (term,) in self.plan.terms_of[:count]]  # each has weights of its own, and so one term
        return self.kernel.reductions_backward(
            self.grads,
            [self.plan.terms[term].edge for term in terms],
            self.maps[0],
            self.a[terms],
            self.b[:count],
            self.d[:count],
            self.state,
            w.reduce1,
            w.reduce2,
            feedback.reduce1,
            feedback.reduce2,
            weights,
        )

    def pools(self) -> Tensor:
        """The error at the state."""
        first = self.plan.reductions
        index, rows, sums = self.plan.pool_gradients
        stacks = [*(grad[None] for grad in self.grads), self.maps[first > 0]]
        weight, offset = torch.cat([self.a, self.b])[rows], self.d[first : first + POOLS]
        delta = self.kernel.mixed_forward(stacks, index, sums, weight, offset, [])
        return self.kernel.pools_backward(delta, self.state, self.plan.stride)


def _total(down: Sequence[Tensor], kernel: Kernels, grads: Sequence[Tensor], scale: Tensor | None) -> Tensor:
    """Σ down + Σ_e scale[e] · grads[e], in one pass."""
    if len(down) == 1 and not grads:
        return down[0]
    like = (*down, *grads)[0]
    weight = like.new_ones(len(down) + len(grads), like.shape[-1])
    if grads:
        assert scale is not None
        weight[len(down) :] = pad_channels(scale.to(like.dtype), kernel)
    index = range(len(weight))
    zero = like.new_zeros(1, like.shape[-1])
    (total,) = kernel.mixed_forward(
        [tensor[None] for tensor in (*down, *grads)], list(index), [0] * len(weight), weight, zero, []
    )
    return total
