"""The arguments and results of the passes of mixed_edges through a backend. Activations are in the backend's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from bionas_fast.kernels.records import Moments
from bionas_fast.ops.mixed_edges.plan import Weights


class Mixed(NamedTuple):
    """The results of the forward pass.

    Attributes:
        out: the sum of every edge, [N, H_out, W_out, C].
        moments: in training, the moments of every normalisation in this batch, in the order of ``Statistics``.
        saved: the tensors that the backward pass of the same backend reads.
    """

    out: Sequence[Tensor]
    moments: Moments | None
    saved: Sequence[Tensor | None]


class SavedState(NamedTuple):
    """The tensors of the forward pass that the backward pass reads.

    Attributes:
        state: [N, H, W, C].
        tensors: those of ``Mixed.saved``.
        training: whether the maps were normalised by the moments of the batch.
    """

    state: Tensor
    tensors: Sequence[Tensor | None]
    training: bool


class Feedbacks(NamedTuple):
    """The feedback of all candidates, and the gradients that it is needed for.

    Attributes:
        weights: the feedback of the candidates with weights.
        identities: [edges, C], the sum over the identities of an edge of feedback times mixing weight; None if there
            are none.
        error: whether the error at the state is requested.
        weight_grads: whether weight gradients are requested.
    """

    weights: Weights
    identities: Tensor | None
    error: bool
    weight_grads: bool


class Gradients(NamedTuple):
    """The results of the backward pass.

    Attributes:
        factors: the gradient of the mixing weights.
        x: the error at the state; None if not requested.
        weights: flat; None if not requested.
    """

    factors: Tensor
    x: Tensor | None
    weights: Tensor | None
