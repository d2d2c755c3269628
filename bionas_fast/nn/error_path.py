"""The switch between the error of a learning rule and the true gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from bionas_fast.errors import expect_type
from bionas_fast.nn import switches


class Mirrored(NamedTuple):
    """The tensors of a layer whose feedback is a weight mirror.

    Attributes:
        weight, feedback: W, and B of the same shape.
        stream: the seed and draw of the layer, int64 [2].
        filters: the dimension of the weight that numbers its filters.
    """

    weight: Tensor
    feedback: Tensor
    stream: Tensor
    filters: int = 0


class ErrorPath(nn.Module):
    """Mixin of modules whose error may differ from the true gradient.

    Attributes:
        learned_parameters: the names of the parameters that hold learned feedback and so are no weights; a module has
            them only if a rule learns its feedback.
    """

    learned_parameters: ClassVar[tuple[str, ...]] = ()
    _true_in: tuple[int, ...] = ()

    def mirrored(self) -> Iterable[Mirrored]:
        """Return the layers of this module, without its submodules, whose feedback is a weight mirror."""
        return ()

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
