"""Redrawing of random feedback, such as that of ``brsf``: in every backward pass, or once per optimiser step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Redrawing(nn.Module):
    """Mixin of modules with a random stream.

    Attributes:
        redraws_every_pass: whether the backward pass of a training step advances the stream to its next draw;
            otherwise :func:`next_draw` does. See :func:`redraw_every_step`.
    """

    redraws_every_pass: bool = True

    def next_draw(self) -> None:
        """Advance the stream to its next draw, if the rule redraws."""
        raise NotImplementedError


def redraw_every_step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """Redraw the random feedback of ``model`` once per optimiser step instead of in every backward pass.

    Under gradient accumulation all micro-batches of a step then share one B, and their averaged gradients are those of
    the whole batch. So are several losses, the two passes of SAM, or the closures of LBFGS.

    Args:
        model: a model with layers whose rule redraws, ``brsf`` or a user-defined one; other layers are not affected.
        optimizer: after each of its steps the next numbers are drawn. Without it, call :func:`next_draw` after a step.

    Returns:
        ``model``. The choice is not part of its ``state_dict``; the current draw is.
    """
    for module in _redrawing(model):
        module.redraws_every_pass = False
    if optimizer is not None:

        def advance(*_: Any) -> None:
            next_draw(model)

        optimizer.register_step_post_hook(advance)
    return model


@torch.no_grad()
def next_draw(model: nn.Module) -> None:
    """Advance the random feedback of every layer of ``model`` whose rule redraws to its next numbers."""
    for module in _redrawing(model):
        module.next_draw()


def _redrawing(model: nn.Module) -> list[Redrawing]:
    return [module for module in model.modules() if isinstance(module, Redrawing)]
