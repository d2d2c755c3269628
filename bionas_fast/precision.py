"""Mixed precision: autocast, and the scaling of losses whose gradients float16 would round to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Amp = Literal["off", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What a run computes in. Weights, their gradients and all statistics stay float32.

    Args:
        amp: ``bf16`` or ``fp16`` for convolutions and matrix products, or ``off``.
    """

    def __init__(self, amp: Amp = "off", device: torch.device | str = "cpu") -> None:
        self.amp, self.device = amp, torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")

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

    def state_dict(self) -> dict[str, Any]:
        """Plain values; empty but for ``fp16``."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
