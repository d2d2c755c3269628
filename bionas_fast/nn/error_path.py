"""The switch between the error of a learning rule and the true gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import nn

from bionas_fast.errors import expect_type
from bionas_fast.nn import switches


class ErrorPath(nn.Module):
    """Mixin of modules whose error may differ from the true gradient.

    Attributes:
        learned_parameters: the names of the parameters that hold learned feedback and so are no weights; a module has
            them only if a rule learns its feedback.
    """

    learned_parameters: ClassVar[tuple[str, ...]] = ()
    _true_in: tuple[int, ...] = ()

    @property
    def true_gradient(self) -> bool:
        """Whether forward passes of this thread use the true gradient instead; see :func:`true_gradients`."""
        return switches.is_on(self, "_true_in")


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Use the true gradient in forward passes of ``model`` inside the block: B = W in every layer.

    For attacks and analysis. Several passes may be in flight; the error path is fixed by the forward pass. Passes that
    other threads run at the same time are not affected.
    """
    expect_type("model", model, nn.Module)
    with switches.switched_on([m for m in model.modules() if isinstance(m, ErrorPath)], "_true_in"):
        yield
