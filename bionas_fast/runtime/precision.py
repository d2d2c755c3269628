"""Mixed precision: autocast, and loss scaling against the underflow of float16 gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bionas_fast.choices import Amp
from bionas_fast.errors import NotFinite

#: Loss scale below which the scale is not the cause of an overflow in float16.
SMALLEST_SCALE = 2.0**-10
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The precision of a run. Weights, their gradients and all statistics stay float32.

    Args:
        amp: ``bf16`` or ``fp16`` for convolutions and matrix products, or ``off``.
    """

    def __init__(self, amp: Amp = "off", device: torch.device | str = "cpu") -> None:
        self.amp = amp
        self.device = torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        # Creates the scale, which is lazy otherwise.
        self.scaler.scale(torch.zeros((), device=self.device))

    def autocast(self) -> torch.autocast:
        """Return the autocast context of forward passes."""
        return torch.autocast(self.device.type, _DTYPES.get(self.amp, torch.bfloat16), enabled=self.amp != "off")

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Compute ``torch.autograd.grad(loss, inputs, allow_unused=True)`` with loss scaling."""
        if self.amp != "fp16":
            return torch.autograd.grad(loss, inputs, allow_unused=True)
        scale = self.scaler.get_scale()
        scaled = torch.autograd.grad(loss * scale, inputs, allow_unused=True)
        return [None if grad is None else grad / scale for grad in scaled]

    def overflowed(self, what: str) -> None:
        """Halve the loss scale after non-finite gradients.

        Args:
            what: the gradients, as a noun phrase.

        Raises:
            NotFinite: the loss is not scaled, or the scale is too small to be the cause.
        """
        if self.amp != "fp16":
            raise NotFinite(what)
        self.scaler.update(self.scaler.get_scale() / 2)
        self.expect_scale(what)

    def expect_scale(self, what: str) -> None:
        """Raise NotFinite if the loss scale has fallen below any useful value."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise NotFinite(f"{what}, however losses are scaled,", ("amp", "learning_rate"))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loss scale as plain values; empty unless ``fp16``."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
