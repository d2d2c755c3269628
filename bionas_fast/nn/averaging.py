"""Averages of models, such as EMA and SWA: state that is no quantity follows the source.

``torch.optim.swa_utils.AveragedModel`` with ``use_buffers=True`` and timm's ``ModelEma*`` average every buffer, most of
them integers too, in float32: of the seed of a random stream, an index or a counter, nothing sensible remains. They
call no hook that a layer could use, so a copy of these buffers is appended to their updates here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.imports import after_import

_PACKAGE = __name__.partition(".")[0]


@torch.no_grad()
def copy_state(average: nn.Module, model: nn.Module) -> None:
    """Copy from ``model`` to its average what an average cannot hold, for the modules of this package.

    These are the integer buffers, and the buffers that a class names in ``exact_buffers``.
    """
    for own, source in zip(_modules(average), _modules(model), strict=True):
        for to, value in zip(_exact(own), _exact(source), strict=True):
            to.copy_(value)


def _modules(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if any(base.__module__.split(".")[0] == _PACKAGE for base in type(module).__mro__)
    ]


def _exact(module: nn.Module) -> Iterator[Tensor]:
    named = getattr(module, "exact_buffers", ())
    for name, buffer in module.named_buffers(recurse=False):
        if name in named or not (buffer.is_floating_point() or buffer.is_complex()):
            yield buffer


def _follow(method: Callable[..., Any], average: str) -> Callable[..., Any]:
    """Wrap an update of the average of a model, which is the attribute ``average``."""

    @wraps(method)
    def update(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = method(self, model, *args, **kwargs)
        copy_state(getattr(self, average), model)
        return result

    return update


def _follow_torch(swa_utils: ModuleType) -> None:
    averaged = swa_utils.AveragedModel
    averaged.update_parameters = _follow(averaged.update_parameters, "module")


def _follow_timm(model_ema: ModuleType) -> None:
    kinds = ("ModelEma", "update", "ema"), ("ModelEmaV2", "_update", "module"), ("ModelEmaV3", "update", "module")
    for name, method, average in kinds:
        ema = getattr(model_ema, name, None)
        if hasattr(ema, method):
            setattr(ema, method, _follow(getattr(ema, method), average))


after_import("torch.optim.swa_utils", _follow_torch)
after_import("timm.utils.model_ema", _follow_timm)
