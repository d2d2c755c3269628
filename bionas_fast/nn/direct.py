"""The path of the error from the logits to the layers that learn by direct feedback alignment.

Each such layer creates a token: zeros with the shape of the logits, which depend on the layer's input in the autograd
graph. The tokens of a forward pass are added to the logits: no value changes, and autograd carries the error at the
logits to each layer. No state survives the pass, so several passes may be in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast import torch_private
from bionas_fast.errors import InputError


class DirectFeedback:
    """Collects the tokens of one forward pass of a model and adds them to its logits."""

    def __init__(self) -> None:
        # One list per device: torch.nn.DataParallel runs replicas of the model in parallel.
        self._tokens: dict[torch.device, list[Tensor]] = {}

    def start(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model: start with no tokens."""
        for tensor in _tensors((args, kwargs)):
            self._tokens[tensor.device] = []

    def runs(self) -> bool:
        """Whether a pass of the model is running, or the backward pass of one, which may repeat layers."""
        return bool(self._tokens) or torch_private.in_backward_pass()

    def collect(self, token: Tensor) -> None:
        """Collect the token of one layer."""
        tokens = self._tokens.get(token.device)
        if tokens is None:
            if torch_private.in_backward_pass():
                return  # gradient checkpointing reruns the layer in the backward pass; only its first token counts
            raise InputError(
                "a layer with direct feedback ran outside the forward pass of the model it is connected to; "
                "its error comes from that model's logits"
            )
        tokens.append(token)

    def finish(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Forward hook of the model: add the tokens to the logits, or to the first entry of a tuple."""
        logits = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(logits, Tensor):
            raise InputError(
                f"direct feedback needs a model that returns logits or a tuple of them; got {type(output)}"
            )
        for token in self._tokens.pop(logits.device, []):
            if token.shape != logits.shape:
                raise InputError(
                    f"direct feedback was made for logits of shape {list(token.shape)}; the model returned "
                    f"{list(logits.shape)} (is num_classes right?)"
                )
            logits = logits + token.to(logits.dtype)
        if isinstance(output, Tensor):
            return logits
        rest = (logits, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
