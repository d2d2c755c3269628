"""The switch between the error that a rule sends down and the true gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class ErrorPath(nn.Module):
    """A module that may send down another error than the true gradient. Mixed into those of this package that do.

    Attributes:
        true_gradient: whether forward passes carry the true gradient instead; set by :func:`true_gradients` only.
    """

    true_gradient: bool = False


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Inside the block, forward passes of ``model`` carry the true gradient: W stands in for B in every layer.

    For attacks and analysis; several passes may be in flight, each keeps the error path that it was made with.
    """
    modules = [module for module in model.modules() if isinstance(module, ErrorPath)]
    before = [module.true_gradient for module in modules]
    for module in modules:
        module.true_gradient = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.true_gradient = value
