"""The optimiser of a supervised training, from its settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import nn

from bionas_fast.errors import InputError, unknown

#: Short names of optimisers.
_SHORT = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_PREFIX = "torch.optim."


class OptimizerSettings(Protocol):
    """The settings of an optimiser; see :class:`bionas_fast.training.config.OptimizerConfig`."""

    @property
    def optimizer(self) -> str: ...
    @property
    def optimizer_options(self) -> Mapping[str, Any]: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def decay_norms(self) -> bool: ...


def build_optimizer(network: nn.Module, config: OptimizerSettings) -> torch.optim.Optimizer:
    """Build the optimiser of a network.

    ``momentum`` and ``nesterov`` are passed to optimisers that have them; changed for another, they are an error.
    Without ``decay_norms``, parameters of at most one dimension form a group without weight decay.

    Raises:
        InputError: an unknown optimiser, or arguments that it does not take.
    """
    kind = _kind(config.optimizer)
    takes = inspect.signature(kind).parameters
    fields = cast("Any", type(config)).model_fields
    arguments: dict[str, Any] = {"lr": config.learning_rate}
    for name in ("weight_decay", "momentum", "nesterov"):
        if name in takes:
            arguments[name] = getattr(config, name)
        elif getattr(config, name) not in (0, fields[name].default):
            raise InputError(f"{name}: {config.optimizer} has no such argument")
    for name in config.optimizer_options:
        if name not in takes or name in ("params", *arguments):
            known = [other for other in takes if other not in ("params", *arguments)]
            raise unknown("argument", name, known, f"optimizer_options of {config.optimizer}")
    options: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in config.optimizer_options.items()
    }
    try:
        return kind(_groups(network, config), **arguments, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"optimizer_options: {config.optimizer} refuses them: {error}") from None


def _kind(name: str) -> type[torch.optim.Optimizer]:
    classes: dict[str, type[torch.optim.Optimizer]] = {
        _PREFIX + key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    known: dict[str, Any] = {**_SHORT, **classes}
    if name not in known:
        raise unknown("optimiser", name, known, "optimizer")
    kind = known[name]
    # These need a closure, or gradients of another kind.
    if kind in (torch.optim.LBFGS, torch.optim.SparseAdam):
        raise InputError(f"optimizer: {name} does not fit this training; use one that steps on dense gradients")
    return kind


def _groups(network: nn.Module, config: OptimizerSettings) -> Any:
    if config.decay_norms:
        return network.parameters()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [group for group in ({"params": decayed}, {"params": others, "weight_decay": 0.0}) if group["params"]]
