"""Many small weights with separate learning rules, in one flat tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from bionas_fast import backends, rules
from bionas_fast.nn import ErrorPath, FeedbackLayer
from bionas_fast.nn.error_path import Mirrored
from bionas_fast.nn.learned import Part, couple
from bionas_fast.nn.redraw import Redrawing
from bionas_fast.ops.feedback import Advance, FeedbackSegments, run_feedback_segments


@dataclass(frozen=True)
class CustomLayer:
    """A layer whose rule computes B itself.

    Attributes:
        part: the layer.
        stored: flat, drawn once or learned; None if the rule stores nothing.
    """

    part: Part
    stored: Tensor | None

    def fill(self, b: Tensor, weights: Tensor, stream: Tensor | None) -> None:
        """Compute B of this layer into the flat B of the bank."""
        part = self.part
        place = slice(part.start, part.start + math.prod(part.shape))
        weight, state = weights[place].view(part.shape), part.state(self.stored, stream, b.dtype)
        b[place].copy_(rules.feedback_of(rules.get(part.rule), weight, state).flatten())


@dataclass(frozen=True)
class BankFeedback:
    """The feedback of a bank in one pass: recorded in the forward pass, computed when the backward pass needs it.

    Attributes:
        weight: the weight of the bank, flat.
        stored: the stored draws and the learned feedback that the kernels read, layer by layer.
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
        learned: flat, the learned feedback of the rules that learn it, layer by layer; or None.
        stream: int64 [layers, 2], seed and draw of every layer; None if no rule redraws.
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ("stored",)  # drawn once
    learned_parameters: ClassVar[tuple[str, ...]] = ("learned",)

    weight: Tensor
    stored: Tensor | None
    learned: Tensor | None
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
        self.custom = [k for k, mode in enumerate(self.segments.modes) if mode == "custom"]
        flat = torch.cat([torch.empty(0), *(layer.weight.detach().flatten() for layer in layers)])
        if layers and all(isinstance(layer.weight, nn.Parameter) for layer in layers):
            self.weight = nn.Parameter(flat)
        else:
            self.register_buffer("weight", flat, persistent=False)
        self.register_buffer("stored", None)
        self.register_buffer("stream", None)
        self.register_parameter("learned", None)
        #: The layers with learned feedback and those with stored draws, in the order of these tensors.
        self.learning = [k for k, layer in enumerate(layers) if isinstance(layer.feedback, nn.Parameter)]
        self.storing = [k for k, own in enumerate(layers) if own.feedback is not None and k not in self.learning]
        # Those read by the batched op come first, so that one tensor need not be copied.
        self.storing.sort(key=lambda k: self.segments.modes[k] == "custom")
        if self.storing:
            self.stored = flat.new_zeros(sum(self.lengths[k] for k in self.storing))
        if self.learning:
            self.learned = nn.Parameter(flat.new_zeros(sum(self.lengths[k] for k in self.learning)))
        starts = [*accumulate(self.lengths, initial=0)]
        self.parts = tuple(
            Part(own.rule, own.law, self.shapes[k], starts[k], k, groups=getattr(own, "groups", 1))
            for k, own in enumerate(layers)
        )
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
        """Return the stored draws or the learned feedback of each layer that has any, flat, by index."""
        parts: dict[int, Tensor] = {}
        for tensor, layers in ((self.stored, self.storing), (self.learned, self.learning)):
            if tensor is not None:
                parts.update(zip(layers, tensor.detach().split([self.lengths[k] for k in layers]), strict=True))
        return parts

    def _read_by_kernels(self) -> Tensor | None:
        """Return what the modes ``stored`` and ``stored_sign`` read, layer by layer."""
        if self.learned is None:
            return self.stored
        parts = self._stored_parts()
        if not self.storing and not self.custom:
            return self.learned.detach()
        read = [parts[k] for k in sorted(parts) if self.segments.modes[k] != "custom"]
        return torch.cat(read) if read else None

    @property
    def coupled(self) -> Tensor:
        """The weight for a pass, which hands its gradient on to the learned feedback."""
        weight, learned = self.weight, self.learned
        if learned is None or not (torch.is_grad_enabled() and weight.requires_grad):
            return weight
        return couple(weight, learned, tuple(self.parts[k] for k in self.learning), self.stream)

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
        stored, custom = self._read_by_kernels(), self._custom_layers()
        return BankFeedback(self.weight, stored, stream, self.segments, advance, backend, custom)

    def mirrored(self) -> Iterator[Mirrored]:
        stored, weights = self._stored_parts(), self.weight.detach().split(self.lengths)
        for k, (rule, shape) in enumerate(zip(self.rules, self.shapes, strict=True)):
            if rules.get(rule).mirrors and self.stream is not None:
                yield Mirrored(weights[k].view(shape), stored[k].view(shape), self.stream[k])

    def next_draw(self) -> None:
        if self.stream is not None:
            self.stream.add_(self._advance)

    def _custom_layers(self) -> tuple[CustomLayer, ...]:
        if not self.custom:
            return ()
        stored = self._stored_parts()
        return tuple(CustomLayer(self.parts[k], stored.get(k)) for k in self.custom)
