"""Mixed precision: autocast, and the scaling of losses whose gradients float16 would round to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bionas_fast.errors import InputError

Amp = Literal["off", "bf16", "fp16"]
#: Below this no gradient overflows float16 because of the scale.
SMALLEST_SCALE = 2.0**-10
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What a run computes in. Weights, their gradients and all statistics stay float32.

    Args:
        amp: ``bf16`` or ``fp16`` for convolutions and matrix products, or ``off``.
    """

    def __init__(self, amp: Amp = "off", device: torch.device | str = "cpu") -> None:
        self.amp, self.device = amp, torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.scaler.scale(
            torch.zeros((), device=self.device)
        )  # makes the scale, which it otherwise does when first used

    def autocast(self) -> torch.autocast:
        """A context in which forward passes run."""
        return torch.autocast(self.device.type, _DTYPES.get(self.amp, torch.bfloat16), enabled=self.amp != "off")

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """As ``torch.autograd.grad(loss, inputs, allow_unused=True)``, with the loss scaled on the way."""
        if self.amp != "fp16":
            return torch.autograd.grad(loss, inputs, allow_unused=True)
        scale = self.scaler.get_scale()
        found = torch.autograd.grad(loss * scale, inputs, allow_unused=True)
        return [None if grad is None else grad / scale for grad in found]

    def overflowed(self, what: str) -> None:
        """Halve the scale of losses after gradients that are not finite.

        Raises:
            InputError: there is no scale, or it is not to blame any more.
        """
        if self.amp != "fp16":
            raise InputError(f"{what}; a lower learning rate may help")
        self.scaler.update(self.scaler.get_scale() / 2)
        self.expect_scale(what)

    def expect_scale(self, what: str) -> None:
        """Raise InputError if the scale has fallen below what any loss can need."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise InputError(f"{what}, however losses are scaled; a lower learning rate or bf16 may help")

    def state_dict(self) -> dict[str, Any]:
        """Plain values; empty but for ``fp16``."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
