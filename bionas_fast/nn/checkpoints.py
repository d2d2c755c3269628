"""Checkpoints of converted models for torch.nn."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from bionas_fast.nn.feedback import FEEDBACK_TENSORS, FeedbackLayer


def torch_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the ``state_dict`` of a converted model without feedback: that of the torch.nn model it was made from.

    The other direction needs no function: a converted model loads the ``state_dict`` of its torch.nn model with
    ``strict=True``, and its feedback is unchanged.

    Args:
        model: any module, also inside a wrapper such as ``DistributedDataParallel``.

    Returns:
        The tensors themselves, as ``state_dict`` does; torch.nn's model loads them with ``strict=True``.
    """
    state = model.state_dict()
    feedback = {
        f"{name}.{tensor}" if name else tensor
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, FeedbackLayer)
        for tensor in FEEDBACK_TENSORS
    }
    plain = OrderedDict((name, value) for name, value in state.items() if name not in feedback)
    if hasattr(state, "_metadata"):
        plain._metadata = state._metadata  # type: ignore[attr-defined]
    return plain
