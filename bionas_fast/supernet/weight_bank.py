"""Many small weights with separate learning rules, in one flat tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from bionas_fast import backends, rules
from bionas_fast.nn import ErrorPath, FeedbackLayer
from bionas_fast.nn.redraw import Redrawing
from bionas_fast.ops.feedback import Advance, FeedbackSegments, draws, run_feedback_segments
from bionas_fast.rules import FeedbackState, Law


@dataclass(frozen=True)
class CustomLayer:
    """A layer whose rule computes B itself, i.e. a user-defined rule.

    Attributes:
        number, start: the index of the layer in its bank, and the offset of its weight.
        stored: flat; None if the rule stores nothing.
    """

    rule: str
    law: Law
    number: int
    start: int
    shape: tuple[int, ...]
    stored: Tensor | None

    def fill(self, b: Tensor, weights: Tensor, stream: Tensor | None) -> None:
        """Compute B of this layer into the flat B of the bank."""
        assert stream is not None
        numbers = partial(draws.uniform, self.shape, stream[self.number])
        stored = None if self.stored is None else self.stored.view(self.shape)
        state = FeedbackState(self.law, stored, lambda: numbers().to(b.dtype))
        place = slice(self.start, self.start + math.prod(self.shape))
        weight = weights[place].view(self.shape)
        b[place].copy_(rules.feedback_of(rules.get(self.rule), weight, state).flatten())


@dataclass(frozen=True)
class BankFeedback:
    """The feedback of a bank in one pass: recorded in the forward pass, computed when the backward pass needs it.

    Attributes:
        weight: the weight of the bank, flat.
        stored: the stored draws of the bank.
        stream: seeds and draws of this pass, independent of other passes.
        segments: the construction of each layer's B; None for B = W.
        advance: the advance of the streams; None if the draws do not change.
        backend: the chosen backend; an autograd thread, which runs :meth:`make`, does not know the choice of others.
        custom: the layers that ``segments`` does not cover.
    """

    weight: Tensor
    stored: Tensor | None = None
    stream: Tensor | None = None
    segments: FeedbackSegments | None = None
    advance: Advance | None = None
    backend: str = "reference"
    custom: tuple[CustomLayer, ...] = ()

    def make(self) -> Tensor:
        """Compute B of every layer, flat."""
        weight = self.weight.detach()
        if self.segments is None:
            return weight
        b = run_feedback_segments(weight, self.stored, self.stream, self.segments, self.backend, self.advance)
        for layer in self.custom:
            layer.fill(b, weight, self.stream)
        return b


class WeightBank(Redrawing, ErrorPath):
    """The weights of several layers, concatenated, and the random numbers of their rules.

    Attributes:
        weight: flat; a parameter, or a buffer if the layers' weights are frozen.
        stored: flat, the draws of the rules that draw once, layer by layer; or None.
        stream: int64 [layers, 2], seed and draw of every layer; None if no rule redraws.
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ("stored",)  # drawn once

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
        #: The layers with stored draws, in the order of ``stored``: those read by the batched op come first.
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
        """Copy weights, stored feedback and streams from layers like those that this bank was built from."""
        for own, stored, k, layer in self._parts(layers):
            own.copy_(layer.weight.flatten())
            if stored is not None and layer.feedback is not None:
                stored.copy_(layer.feedback.flatten())
            if layer.feedback_stream is not None and self.stream is not None:
                self.stream[k].copy_(layer.feedback_stream)

    @torch.no_grad()
    def write(self, layers: Sequence[FeedbackLayer]) -> None:
        """Copy weights, stored feedback and streams to such layers."""
        for own, stored, k, layer in self._parts(layers):
            layer.weight.copy_(own.view_as(layer.weight))
            if stored is not None and layer.feedback is not None:
                layer.feedback.copy_(stored.view_as(layer.feedback))
            if layer.feedback_stream is not None and self.stream is not None:
                layer.feedback_stream.copy_(self.stream[k])

    def _stored_parts(self) -> dict[int, Tensor]:
        """Return the stored draws of each layer that has any, flat, by index."""
        if self.stored is None:
            return {}
        return dict(zip(self.storing, self.stored.split([self.lengths[k] for k in self.storing]), strict=True))

    def _parts(self, layers: Sequence[FeedbackLayer]) -> Iterator[tuple[Tensor, Tensor | None, int, FeedbackLayer]]:
        stored = self._stored_parts()
        parts = zip(self.weight.split(self.lengths), layers, strict=True)
        return ((own, stored.get(k), k, layer) for k, (own, layer) in enumerate(parts))

    def prepare(self, stream: Tensor | None) -> BankFeedback:
        """Record the feedback of the pass that is about to begin, for its backward pass.

        Args:
            stream: a copy of ``self.stream`` that nothing changes.
        """
        if self.true_gradient:
            return BankFeedback(self.weight)
        advance = None
        if self.training and self.redraws_every_pass and self.stream is not None:
            advance = Advance(self.stream, self._advance)
        backend = backends.choose("feedback_segments", self.weight.device.type)
        return BankFeedback(self.weight, self.stored, stream, self.segments, advance, backend, self._custom_layers())

    def next_draw(self) -> None:
        if self.stream is not None:
            self.stream.add_(self._advance)

    def _custom_layers(self) -> tuple[CustomLayer, ...]:
        if not self.custom:
            return ()
        starts = [*accumulate(self.lengths, initial=0)]
        stored = self._stored_parts()
        return tuple(
            CustomLayer(self.rules[k], self.laws[k], k, starts[k], self.shapes[k], stored.get(k)) for k in self.custom
        )
