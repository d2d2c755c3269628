"""The class that takes the place of a torch.nn layer's class in a conversion."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from bionas_fast.nn import layers, lazy, transposed
from bionas_fast.nn.attention import MultiheadAttention, Projection
from bionas_fast.nn.feedback import FeedbackLayer

#: Classes by their names in torch.nn.
CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: layers.Conv1d,
    nn.Conv2d: layers.Conv2d,
    nn.Conv3d: layers.Conv3d,
    nn.Linear: layers.Linear,
    NonDynamicallyQuantizableLinear: layers.Linear,
    nn.ConvTranspose1d: transposed.ConvTranspose1d,
    nn.ConvTranspose2d: transposed.ConvTranspose2d,
    nn.ConvTranspose3d: transposed.ConvTranspose3d,
    nn.LazyConv1d: lazy.LazyConv1d,
    nn.LazyConv2d: lazy.LazyConv2d,
    nn.LazyConv3d: lazy.LazyConv3d,
    nn.LazyConvTranspose1d: lazy.LazyConvTranspose1d,
    nn.LazyConvTranspose2d: lazy.LazyConvTranspose2d,
    nn.LazyConvTranspose3d: lazy.LazyConvTranspose3d,
    nn.LazyLinear: lazy.LazyLinear,
    nn.MultiheadAttention: MultiheadAttention,
}
#: Classes of other libraries, which are not imported, by module and name.
_FOREIGN: dict[tuple[str, str], type[nn.Module]] = {
    ("transformers.pytorch_utils", "Conv1D"): transposed.TransposedLinear,
}


def class_with_rule(module: nn.Module) -> type[nn.Module] | None:
    """Return the class with a learning rule for ``module``: its own if it has one, None if there is none."""
    kind = type(module)
    if isinstance(module, Projection):
        return None  # part of its attention
    if isinstance(module, (FeedbackLayer, MultiheadAttention)):
        return kind
    return _known(kind.__bases__[0] if parametrize.is_parametrized(module) else kind)


def _known(kind: type[nn.Module]) -> type[nn.Module] | None:
    return CLASSES.get(kind) or _FOREIGN.get((kind.__module__, kind.__name__))


def give_class(module: nn.Module) -> None:
    """Give the module the class with a learning rule; everything else (parameters, hooks, references) is unchanged."""
    found = class_with_rule(module)
    assert found is not None
    kind = type(module)
    if parametrize.is_parametrized(module) and found is not kind:
        # The parametrisation is a property of a class made for this module alone.
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        found = type(f"Parametrized{found.__name__}", (found,), own)
    module.__class__ = found
