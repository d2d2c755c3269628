"""Layers of this package as leaves of symbolic traces, as torch.fx treats those of torch.nn."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def leaf(layer: nn.Module, *arguments: Any) -> Proxy:
    """Record a call of ``layer``; the first argument is a value of the trace.

    Every tracer of torch.fx, and of libraries that build on it, sees ``call_module`` of the layer.
    """
    tracer: Any = arguments[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), arguments, {})
