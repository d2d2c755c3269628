"""The limit of layers that change their own state under torch.func."""

from __future__ import annotations

import torch

from bionas_fast import torch_private
from bionas_fast.errors import InputError


def refuse_transforms(name: str) -> None:
    """Refuse to run a forward pass that changes the state of a layer inside a transform of torch.func.

    Raises:
        InputError: such a transform is active; its functions have no side effects.
    """
    if not torch.compiler.is_compiling() and torch_private.in_functional_transform():
        raise InputError(
            f"{name}: changes its state in a forward pass in training, which transforms of torch.func (vmap, grad, "
            "jacrev, ...) do not allow; call model.eval(), or for Hebbian layers use frozen_plasticity(model)"
        )
