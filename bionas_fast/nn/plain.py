"""Conversion to plain torch.nn layers, for programs that know no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from bionas_fast.errors import InputError, expect_type

_PACKAGE = __name__.partition(".")[0]


def to_torch(model: nn.Module) -> nn.Module:
    """Copy a model with torch.nn's layers in place of those of this package, for fx, ONNX, quantisation, TorchScript.

    Weights and outputs are the same. Rules, their feedback and the hooks of direct feedback are removed; what learns
    learns by back-propagation. A Hebbian layer becomes the layer of its current weights, which are now a parameter.

    A model that consists of modules of this package, such as a genotype network, becomes a ``torch.fx.GraphModule`` of
    its evaluation mode: without auxiliary head and drop-path. The names of its parameters are the same.

    Args:
        model: a converted model, a genotype network, or any other; it is unchanged.

    Returns:
        The copy, in the same mode; no module of it is one of this package.

    Raises:
        InputError: a layer that no layer of torch.nn can replace, such as predictive coding. The message names it.
    """
    expect_type("model", model, nn.Module)
    network = copy.deepcopy(model)
    for module in network.modules():
        _remove_hooks(module)
    network = _replaced(network, _is_layer, _plain)
    return _replaced(network, _is_ours, _traced)


def plain_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class that a class of this package extends for ``module``; None if that is ``nn.Module`` itself."""
    kinds = _own_class(module).__mro__
    plain = next(kind for kind in kinds if not any(map(_is_of_this_package, kind.__mro__)))
    return None if plain is nn.Module else plain


def become(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Give ``module`` the class ``kind``; its parameters, hooks and the references to it are unchanged."""
    own = type(module)
    if parametrize.is_parametrized(module):
        # The parametrisation is a property of a class made for this module alone.
        members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
        kind = type(f"Parametrized{kind.__name__}", (kind,), members)
    module.__class__ = kind
    return module


def _is_layer(module: nn.Module) -> bool:
    return callable(getattr(_own_class(module), "to_torch", None))


def _plain(name: str, layer: Any) -> nn.Module:
    try:
        own = next(kind for kind in _own_class(layer).__mro__ if "forward" in vars(kind))
        if not _is_of_this_package(own):
            raise InputError(f"expected a layer with the forward of its base class, got that of {own.__name__}")
        return layer.to_torch()
    except InputError as error:
        raise error.at(f"to_torch: {name or 'the model'} ({type(layer).__name__})") from None


def _own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, without the one that a parametrisation made for it."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def _is_ours(module: nn.Module) -> bool:
    return _is_of_this_package(_own_class(module))


def _is_of_this_package(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == _PACKAGE


def _traced(name: str, module: nn.Module) -> nn.Module:
    """Return a module of this package as plain torch: a class of torch.nn, or the graph of its evaluation mode."""
    kind = plain_class(module)
    if kind is not None and _own_class(module).forward is kind.forward:
        become(module, kind)
        for child, part in list(module.named_children()):
            module.add_module(child, _replaced(part, _is_ours, _traced))
        return module
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        part.training = False
    try:
        graph = _Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError, AttributeError, InputError) as error:
        place = f"{name or 'the model'} ({type(module).__name__})"
        raise InputError(f"to_torch: {place}: expected layers that torch.nn has; {error}") from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    for node in graph.nodes:
        node.type = None  # annotations are text, which TorchScript cannot read
    for node in graph.find_nodes(op="placeholder"):
        if not node.users and node.args:  # a setting of the training mode
            graph.erase_node(node)
    traced = fx.GraphModule(module, graph, type(module).__name__)
    for part in traced.modules():
        part.training = modes.get(part, module.training)
    for names in _HOOKS:
        getattr(traced, names).update(getattr(module, names))
    return traced


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return not any(_is_ours(part) for part in module.modules())


#: Hooks by the names of their attributes, and the sets of options that name them.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OTHER_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_HOOK_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")


def _remove_hooks(module: nn.Module) -> None:
    """Remove the hooks of this package."""
    for names in (*_HOOKS, *_OTHER_HOOKS):
        hooks = getattr(module, names, {})
        for key in [key for key, hook in hooks.items() if _is_own_hook(hook)]:
            del hooks[key]
            for options in _HOOK_OPTIONS:
                getattr(module, options).pop(key, None)


def _is_own_hook(hook: Any) -> bool:
    for name in ("hook", "func", "__func__"):  # of torch's wrapper, of partial, of a method
        hook = getattr(hook, name, hook)
    return getattr(hook, "__module__", None) is not None and hook.__module__.partition(".")[0] == _PACKAGE


def _replaced(
    network: nn.Module, chosen: Callable[[nn.Module], bool], replace: Callable[[str, nn.Module], nn.Module]
) -> nn.Module:
    """Replace the outermost chosen modules, each once, wherever they occur."""
    done: dict[nn.Module, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = module
            if chosen(module):
                done[module] = replace(name, module)
            else:
                for child, part in module._modules.items():
                    if part is not None:
                        module._modules[child] = visit(f"{name}.{child}" if name else child, part)
        return done[module]

    return visit("", network)
