"""The mixed candidates of all edges from a state of a cell: one op with one backward pass.

The candidates read the same state, so one pass over it serves all of them. Each is followed by batch normalisation, an
affine map per channel that the next kernel applies on load, and whose backward pass is an affine map that the previous
kernel applies on load: neither result is ever written to memory. Only the maps before the last normalisations are
written; the mixed sum reads each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bionas_fast import backends, native
from bionas_fast.errors import InputError
from bionas_fast.ops.mixed_edges.backends import Backend, find
from bionas_fast.ops.mixed_edges.layout import Layout
from bionas_fast.ops.mixed_edges.plan import Plan, Weights
from bionas_fast.ops.mixed_edges.records import Feedbacks, SavedState
from bionas_fast.ops.mixed_edges.statistics import Statistics

backends.declare("mixed_edges", native=native.obstacle, triton=backends.triton_obstacle)


class Feedback(Protocol):
    """The feedback of all candidates in one pass."""

    def make(self) -> tuple[Tensor, Tensor | None]:
        """Compute the feedback, flat like the weights, and that of the identities, [edges, C]; called once."""


class Execution(NamedTuple):
    """The backend of both passes, and the dtype of saved maps."""

    backend: Backend
    maps: torch.dtype


def mixed_edges(
    x: Tensor,
    mixing: Tensor,
    into: Sequence[Tensor | None],
    weights: Tensor,
    plan: Plan,
    statistics: Statistics,
    feedback: Feedback,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """Compute into[e] + Σ_{maps of e} mixing · BN(map) for each edge e; the identity has no BN.

    Under autocast to bfloat16 the maps are stored in it, see ``kernels.maps``.

    Args:
        x: the state, [N, H, W, C].
        mixing: the mixing weights of the separable candidates, then of the terms of ``plan``.
        into: for each edge a tensor [N, H_out, W_out, C] to add to, or None.
        weights: flat, as split by :meth:`Weights.split`.
        statistics: updated in training, used otherwise.
        feedback: computed in the backward pass, and only if an error or a weight gradient needs it.

    Returns:
        One tensor [N, H_out, W_out, C] per edge, in the dtype of x; if maps are stored in bfloat16, in float32 or,
        from the Triton kernels, in bfloat16.

    Raises:
        InputError: a single position in training, whose variance is 0.
    """
    if statistics.training and len(statistics.mean) and statistics.synchroniser is None:
        images, height, width, _ = x.shape
        if images * -(-height // plan.stride) * -(-width // plan.stride) == 1:
            raise InputError(
                "batch normalisation in training needs more than one value per channel, and of one image one pixel is "
                "left: expected a larger batch or larger images"
            )
    # In evaluation no statistics are computed, so none are synchronised.
    synchroniser = statistics.synchroniser if statistics.training else None
    implementation = find(chosen_backend(x, weights, backend), synchroniser)
    maps = stored_dtype(weights)
    sums = weights.dtype if implementation.wide_sums else maps
    into = [None if tensor is None else tensor.to(sums) for tensor in into]
    given = x if x.dtype == maps else x.to(weights.dtype)
    execution = Execution(implementation, maps)
    out = _MixedEdges.apply(given, mixing, weights, plan, statistics, feedback, execution, *into)
    return out if maps != weights.dtype else tuple(tensor.to(x.dtype) for tensor in out)


def stored_dtype(weights: Tensor) -> torch.dtype:
    """Choose the dtype of saved maps: bfloat16 under autocast to it, otherwise that of the weights."""
    device = weights.device.type
    if weights.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return weights.dtype
    return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else weights.dtype


def chosen_backend(x: Tensor, weights: Tensor, backend: str | None) -> str:
    """Choose the backend; sums over whole batches use the precision of the weights, float32 under autocast."""
    chosen = backends.choose("mixed_edges", x.device.type, backend)
    if weights.dtype != torch.float32 or not x.numel():
        return "reference"
    if chosen == "triton" and backends.traced():
        return "reference" if backends.recorded() else "traced"
    return chosen


def _without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """Disable autocast in a method: run it in the dtypes of its tensors."""

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
        feedback: Feedback,
        execution: Execution,
        *into: Tensor | None,
    ) -> tuple[Tensor, ...]:
        backend, maps = execution
        layout = Layout.of(x, backend.multiple, backend.most_images)
        backend = backend.of_images(layout.images)
        state = layout.pack(x.to(maps))
        w = Weights.split(weights, plan, layout.channels)
        given = None if statistics.training else layout.moments(statistics.mean, statistics.var)
        moved = statistics.running if statistics.training and backend.moves_statistics else None
        before = [None if tensor is None else layout.pack(tensor) for tensor in into]
        out, moments, saved = backend.forward(state, w, plan, mixing.to(backend.factors), given, before, moved)
        if moments is not None and moved is None:
            statistics.update(moments, out[0].numel() // layout.width)
        ctx.save_for_backward(state, mixing, weights, *saved)
        ctx.static = plan, feedback, statistics.training, backend, layout, [tensor is not None for tensor in into]
        return tuple(layout.unpack(tensor) for tensor in out)

    @staticmethod
    @_without_autocast
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        plan, feedback, training, backend, layout, added = ctx.static
        state, mixing, weights, *saved = ctx.saved_tensors
        want_x, _, want_weights, *_ = ctx.needs_input_grad
        grads = tuple(grad.contiguous() for grad in grads)
        # The gradients of ``into`` are passed on without a copy.
        passed = [grad if own else None for grad, own in zip(grads, added, strict=True)]
        b = None
        if want_x or want_weights:
            flat, identities = feedback.make()
            identities = None if identities is None else layout.rows(identities)
            b = Feedbacks(Weights.split(flat, plan, layout.channels), identities, want_x, want_weights)
        found = backend.backward(
            [layout.pack(grad) for grad in grads],
            SavedState(state, saved, training),
            Weights.split(weights, plan, layout.channels),
            b,
            plan,
            mixing.to(backend.factors),
        )
        grad_x = None if found.x is None else layout.unpack(found.x)
        return (grad_x, found.factors.to(mixing.dtype), found.weights, *[None] * 4, *passed)
