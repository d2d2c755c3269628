"""The switch between the error of a learning rule and the true gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class ErrorPath(nn.Module):
    """Mixin of modules whose error may differ from the true gradient.

    Attributes:
        true_gradient: whether forward passes use the true gradient instead; set by :func:`true_gradients` only.
    """

    true_gradient: bool = False


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Use the true gradient in forward passes of ``model`` inside the block: B = W in every layer.

    For attacks and analysis. Several passes may be in flight; the error path is fixed by the forward pass.
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
