"""Messages about steps that a run cannot take: numbers that are not finite, batches too small to normalise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bionas_fast.config import Config
from bionas_fast.errors import InputError, shown


def likely_causes(config: Config, suspects: Sequence[str]) -> str:
    """Format the suspected settings that were changed from their defaults; if none were, the first one."""
    fields = type(config).model_fields
    names = [name for name in suspects if name in fields]
    changed = [name for name in names if getattr(config, name) != fields[name].default] or names[:1]
    return "likely causes: " + ", ".join(f"{name} = {shown(getattr(config, name))}" for name in changed)


def too_small_a_batch(error: ValueError, x: Tensor) -> InputError | None:
    """Return the error of a batch-normalisation layer in terms of the batch size, or None if it is another error.

    Args:
        x: the batch, [N, C, H, W].
    """
    if "more than 1 value per channel" not in str(error):
        return None
    return InputError(
        "batch_size: batch normalisation needs more than one value per channel, and a batch of "
        f"{len(x)} at {x.shape[-2]}x{x.shape[-1]} pixels gives a layer only one"
    )
