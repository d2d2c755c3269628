"""Feedback weights described as data: what every implementation and every caller of them shares."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

#: The constructions of B, in the order that the kernels count them; csrc/cpu/feedback.h repeats the list:
#:
#: - ``weight``       B = W
#: - ``stored``       B = a stored tensor
#: - ``sign``         B = scale · sign(W)
#: - ``stored_sign``  B = |stored tensor| ⊙ sign(W)
#: - ``drawn_sign``   B = |M| ⊙ sign(W), M drawn again for every training forward/backward pair
#: - ``direct``       the error at the logits through a stored tensor of shape [classes, ...]
MODES = ("weight", "stored", "sign", "stored_sign", "drawn_sign", "direct")
#: The modes of a segment: in ``custom`` the rule makes B itself, and the kernels leave zeros.
SEGMENT_MODES = (*MODES, "custom")
#: The modes in which a kernel computes B; in the others B is a tensor already.
COMPUTED = ("sign", "stored_sign", "drawn_sign")


class Feedback(NamedTuple):
    """The construction of B for one layer and one pass.

    Attributes:
        mode: one of :data:`MODES` but ``direct``.
        stored: the tensor that ``stored`` and ``stored_sign`` read, shaped like the weight.
        stream: int64 [2], seed and draw, read by ``drawn_sign``.
        bound: a of |M| ~ U(0, a) in ``drawn_sign``.
        scale: the constant magnitude of ``sign``.
        advance: whether the backward pass moves ``stream`` on to the next draw when it is done.
    """

    mode: str = "weight"
    stored: Tensor | None = None
    stream: Tensor | None = None
    bound: float = 0.0
    scale: float = 0.0
    advance: bool = False

    def for_matrix(self) -> Feedback:
        """The same for a weight whose dimensions after the first are flattened."""
        if self.stored is None:
            return self
        return Feedback(self.mode, self.stored.flatten(1), self.stream, self.bound, self.scale, self.advance)

    def at(self, draw: Tensor | None) -> Feedback:
        """The same with the numbers of ``draw``, a stream that nobody moves on."""
        return Feedback(self.mode, self.stored, draw, self.bound, self.scale)


class FeedbackSegments(NamedTuple):
    """Several layers' weights in one flat tensor: for each its length, and its ``mode``, ``bound`` and ``scale``."""

    lengths: tuple[int, ...]
    modes: tuple[str, ...]
    bounds: tuple[float, ...]
    scales: tuple[float, ...]
