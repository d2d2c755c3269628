"""Descriptions of feedback weights, common to all implementations and callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

#: The constructions of B, in the order of the enum in csrc/cpu/feedback.h:
#:
#: - ``weight``       B = W
#: - ``stored``       B = a stored tensor
#: - ``sign``         B = scale · sign(W)
#: - ``stored_sign``  B = |stored tensor| ⊙ sign(W)
#: - ``drawn_sign``   B = |M| ⊙ sign(W), M redrawn for every forward/backward pair in training
#: - ``direct``       the error at the logits through a stored tensor of shape [classes, ...]
MODES = ("weight", "stored", "sign", "stored_sign", "drawn_sign", "direct")
#: The modes of a segment: under ``custom`` the rule computes B itself, and the kernels write zeros.
SEGMENT_MODES = (*MODES, "custom")
#: The modes in which a kernel computes B; in the others B is an existing tensor.
COMPUTED = ("sign", "stored_sign", "drawn_sign")


class Feedback(NamedTuple):
    """The construction of B for one layer and one pass.

    Attributes:
        mode: one of :data:`MODES` except ``direct``.
        stored: the tensor that ``stored`` and ``stored_sign`` read, shaped like the weight.
        stream: int64 [2], seed and draw, read by ``drawn_sign``.
        bound: a of |M| ~ U(0, a) in ``drawn_sign``.
        scale: the constant magnitude of ``sign``.
        advance: whether the backward pass advances ``stream`` to the next draw when it is done.
    """

    mode: str = "weight"
    stored: Tensor | None = None
    stream: Tensor | None = None
    bound: float = 0.0
    scale: float = 0.0
    advance: bool = False

    def for_matrix(self) -> Feedback:
        """Adapt to a weight whose dimensions after the first are flattened."""
        if self.stored is None:
            return self
        return Feedback(self.mode, self.stored.flatten(1), self.stream, self.bound, self.scale, self.advance)

    def at(self, draw: Tensor | None) -> Feedback:
        """Fix the stream to ``draw``, which is not advanced."""
        return Feedback(self.mode, self.stored, draw, self.bound, self.scale)


class FeedbackSegments(NamedTuple):
    """Segments of a flat tensor of several layers' weights: length, ``mode``, ``bound`` and ``scale`` of each."""

    lengths: tuple[int, ...]
    modes: tuple[str, ...]
    bounds: tuple[float, ...]
    scales: tuple[float, ...]


class Advance(NamedTuple):
    """The advance of streams to their next draws, in place: ``stream += steps``, int64 [segments, 2] both.

    ``stream`` is not the copy that a pass reads.
    """

    stream: Tensor
    steps: Tensor

    def apply(self) -> None:
        """Advance the streams."""
        self.stream.add_(self.steps)
