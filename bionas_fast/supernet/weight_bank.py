"""Many small weights with learning rules of their own, in one flat tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bionas_fast import rules
from bionas_fast.nn import ErrorPath, FeedbackLayer
from bionas_fast.ops.feedback import FeedbackSegments, feedback_segments
from bionas_fast.rules import FeedbackState


class Bank(ErrorPath):
    """The weights of several layers, one after the other, and what their rules draw.

    Attributes:
        weight: flat; a parameter, or a buffer where the layers' weights are frozen.
        stored: flat, what the rules that draw once have drawn, of their layers; or None.
        stream: int64 [layers, 2], seed and draw of every layer; or None where no rule redraws.
    """

    weight: Tensor
    stored: Tensor | None
    stream: Tensor | None
    _advance: Tensor

    def __init__(self, layers: Sequence[FeedbackLayer]) -> None:
        super().__init__()
        self.shapes = [tuple(layer.weight.shape) for layer in layers]
        self.lengths = [layer.weight.numel() for layer in layers]
        self.rules = [layer.rule for layer in layers]
        laws = [layer.law for layer in layers]
        self.segments = FeedbackSegments(
            tuple(self.lengths),
            tuple(rules.get(rule).mode for rule in self.rules),
            tuple(law.bound for law in laws),
            tuple(law.scale for law in laws),
        )
        self.laws = laws
        self.custom = [k for k, mode in enumerate(self.segments.modes) if mode == "custom"]
        flat = torch.cat([torch.empty(0), *(layer.weight.detach().flatten() for layer in layers)])
        if layers and all(isinstance(layer.weight, nn.Parameter) for layer in layers):
            self.weight = nn.Parameter(flat)
        else:
            self.register_buffer("weight", flat, persistent=False)
        self.register_buffer("stored", None)
        self.register_buffer("stream", None)
        #: The layers of which something is stored, in that order: what the batched op reads comes first.
        self.storing = [k for k, layer in enumerate(layers) if layer.feedback is not None]
        self.storing.sort(key=lambda k: self.segments.modes[k] == "custom")
        if self.storing:
            self.stored = flat.new_zeros(sum(self.lengths[k] for k in self.storing))
        if any(layer.feedback_stream is not None for layer in layers):
            self.stream = torch.zeros(len(layers), 2, dtype=torch.int64)
        redraws = torch.tensor([[0, int(rules.get(rule).redraws)] for rule in self.rules])
        self.register_buffer("_advance", redraws, persistent=False)
        self.read(layers)

    @torch.no_grad()
    def read(self, layers: Sequence[FeedbackLayer]) -> None:
        """Take weights, stored feedback and streams from layers like those this bank was made of."""
        for own, stored, k, layer in self._parts(layers):
            own.copy_(layer.weight.flatten())
            if stored is not None:
                stored.copy_(layer.feedback.flatten())
            if layer.feedback_stream is not None and self.stream is not None:
                self.stream[k].copy_(layer.feedback_stream)

    @torch.no_grad()
    def write(self, layers: Sequence[FeedbackLayer]) -> None:
        """Give weights, stored feedback and streams back to such layers."""
        for own, stored, k, layer in self._parts(layers):
            layer.weight.copy_(own.view_as(layer.weight))
            if stored is not None:
                layer.feedback.copy_(stored.view_as(layer.feedback))
            if layer.feedback_stream is not None and self.stream is not None:
                layer.feedback_stream.copy_(self.stream[k])

    def _stored_parts(self) -> dict[int, Tensor]:
        """What is stored of each layer, flat."""
        if self.stored is None:
            return {}
        return dict(zip(self.storing, self.stored.split([self.lengths[k] for k in self.storing]), strict=True))

    def _parts(self, layers: Sequence[FeedbackLayer]):
        stored = self._stored_parts()
        parts = zip(self.weight.split(self.lengths), layers, strict=True)
        return ((own, stored.get(k), k, layer) for k, (own, layer) in enumerate(parts))

    def prepare(self) -> Callable[[], Tensor]:
        """Call in the forward pass; what it returns makes B for this pass, flat, when the backward pass needs it."""
        if self.true_gradient:
            return self.weight.detach
        snapshot = None if self.stream is None else self.stream.clone()
        training = self.training

        def make() -> Tensor:
            b = feedback_segments(self.weight.detach(), self.stored, snapshot, self.segments)
            self._add_custom(b, snapshot)
            if training and self.stream is not None:
                self.stream.add_(self._advance)
            return b

        return make

    def _add_custom(self, b: Tensor, stream: Tensor | None) -> None:
        """Rules of a user's own make their B themselves."""
        from bionas_fast.kernels.feedback import reference

        for k in self.custom:
            rule, shape, part = rules.get(self.rules[k]), self.shapes[k], b.split(self.lengths)[k]
            weight = self.weight.detach().split(self.lengths)[k].view(shape)
            stored = self._stored_parts().get(k)
            stored = None if stored is None else stored.view(shape)
            assert stream is not None
            numbers = partial(reference.uniform, shape, stream[k])
            state = FeedbackState(self.laws[k], stored, lambda numbers=numbers: numbers().to(b.dtype))  # type: ignore[misc]
            part.copy_(rules.feedback_of(rule, weight, state).flatten())
