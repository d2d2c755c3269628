"""Conversion of an existing model to layers with learning rules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from bionas_fast import rules
from bionas_fast.errors import BionasWarning, InputError, unknown
from bionas_fast.nn.feedback import FeedbackLayer, connect_direct_feedback, random_state, seed_from
from bionas_fast.nn.layers import Conv1d, Conv2d, Conv3d, Linear

RuleChoice = str | rules.Rule | Mapping[str, str] | Callable[[str, nn.Module], str | rules.Rule | None]

_LAYERS: dict[type[nn.Module], type[FeedbackLayer]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.Linear: Linear,
}


def convert(
    model: nn.Module,
    rule: RuleChoice = "usf",
    *,
    copy_weights: bool = True,
    feedback_init: str = "default",
    num_classes: int | None = None,
    seed: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Convert the convolutions and linear layers of a model to layers with learning rules.

    Args:
        model: any module. Layers of the types Conv1d, Conv2d, Conv3d and Linear, of torch.nn or of this package, are
            converted; subclasses that override ``forward`` are left unchanged, with a warning.
        rule: a rule for all layers; or a mapping from patterns of module names to rules, where the first match counts
            (``{"layer1.*": "usf", "*": "bp"}``); or a function of (name, module) that returns a rule, or None to leave
            the layer unchanged.
        copy_weights: keep the model's weights; otherwise they are redrawn according to ``feedback_init``.
        feedback_init: the distribution of random feedback, ``"default"`` or ``"xavier"``.
        num_classes: the number of logits, for ``dfa``; by default the outputs of the model's last linear layer.
        seed: the seed of all random feedback; by default drawn from PyTorch's generator.
        inplace: convert ``model`` itself. Parameters remain the same objects, so existing optimisers remain valid.

    Returns:
        The converted model: a copy by default, with ``model`` unchanged.

    Raises:
        InputError: an unknown rule; a pattern that matches no layer; no layer to convert; ``dfa`` without
            ``num_classes`` in a model without a linear layer. The model is unchanged.
    """
    rules.get_law(feedback_init, (1, 1))
    layers = {
        name: module
        for name, module in model.named_modules()
        if type(module) in _LAYERS or isinstance(module, FeedbackLayer)
    }
    chosen = {name: choice for name, choice in _choose(rule, layers).items() if choice is not None}
    if not chosen:
        raise InputError(
            f"nothing to convert: {type(model).__name__} has no convolution or linear layer that was chosen"
        )
    if num_classes is None and any(choice.stores == "direct" for choice in chosen.values()):
        num_classes = _count_classes(layers)
    _warn_of_subclasses(model)

    if not inplace:
        model = copy.deepcopy(model)
    if seed is None:
        seed = seed_from(random_state(None, torch.device("cpu")))
        torch.rand(())  # advances the generator, so that the next conversion draws different feedback
    modules = dict(model.named_modules())
    for name, choice in chosen.items():
        layer = modules[name]
        layer_seed = seed_from(f"{seed} {name}".encode())
        # Changing the class preserves everything else: parameters, hooks, references to the module.
        layer.__class__ = _LAYERS.get(type(layer), type(layer))
        layer.set_rule(choice, feedback_init=feedback_init, num_classes=num_classes, seed=layer_seed)
        if not copy_weights:
            layer.reset_weight(torch.Generator().manual_seed(layer_seed))
    return connect_direct_feedback(model)


def _choose(choice: RuleChoice, layers: Mapping[str, nn.Module]) -> dict[str, rules.Rule | None]:
    if isinstance(choice, (str, rules.Rule)):
        rule = rules.get(choice)
        return dict.fromkeys(layers, rule)
    if isinstance(choice, Mapping):
        patterns = {pattern: rules.get(name) for pattern, name in choice.items()}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise unknown("layer pattern", pattern, layers, "convert")
        return {
            name: next((rule for pattern, rule in patterns.items() if fnmatchcase(name, pattern)), None)
            for name in layers
        }
    named = {name: choice(name, module) for name, module in layers.items()}
    return {name: None if rule is None else rules.get(rule) for name, rule in named.items()}


def _count_classes(layers: Mapping[str, nn.Module]) -> int:
    linear = [module for module in layers.values() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("rule 'dfa' needs num_classes: the model has no linear layer to read it from")
    return linear[-1].out_features


def _warn_of_subclasses(model: nn.Module) -> None:
    skipped = [
        name
        for name, module in model.named_modules()
        if isinstance(module, tuple(_LAYERS)) and type(module) not in _LAYERS and not isinstance(module, FeedbackLayer)
    ]
    if skipped:
        warnings.warn(
            f"convert leaves subclasses with a forward of their own as they are: {', '.join(skipped)}",
            BionasWarning,
            stacklevel=3,
        )
