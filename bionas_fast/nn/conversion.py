"""Conversion of an existing model to layers with learning rules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bionas_fast import rules
from bionas_fast.errors import BionasWarning, InputError, expect_type, unknown
from bionas_fast.nn.attention import MultiheadAttention
from bionas_fast.nn.classes import CLASSES, class_with_rule, give_class
from bionas_fast.nn.feedback import connect_direct_feedback, random_state, seed_from
from bionas_fast.nn.lazy import Lazy
from bionas_fast.nn.shares import group_of, layers_with_weights, rule_shares

RuleChoice = str | rules.Rule | Mapping[str, str] | Callable[[str, nn.Module], str | rules.Rule | None]


def convert(
    model: nn.Module,
    rule: RuleChoice = "usf",
    *,
    copy_weights: bool = True,
    feedback_init: str = "default",
    num_classes: int | None = None,
    seed: int | None = None,
    inplace: bool = False,
    strict: bool = False,
) -> nn.Module:
    """Convert the layers of a model to layers with learning rules.

    Converted are Conv1d-3d, ConvTranspose1d-3d, Linear, their Lazy variants (at their first forward pass) and
    MultiheadAttention of torch.nn, also under a parametrisation or pruned (B follows from the weight in use), Conv1D of
    transformers, and the layers of this package. Everything else keeps learning by back-propagation. One warning lists
    such modules, each with the reason if it is a subclass with a forward of its own, and the share of the weights that
    learn by each rule (:func:`rule_shares`). Not listed are layers without a weight matrix in the path of the error
    (normalisation, PReLU, embeddings), frozen modules, and modules for which ``rule`` does not ask.

    Args:
        model: any module.
        rule: a rule for all layers; or a mapping from patterns of module names to rules, where the first match counts
            (``{"layer1.*": "usf", "*": "bp"}``); or a function of (name, module) that returns a rule, or None to leave
            the layer unchanged. The name of a MultiheadAttention stands for its three input projections, and
            ``NAME.out_proj`` for its output projection.
        copy_weights: keep the model's weights; otherwise they are redrawn according to ``feedback_init``.
        feedback_init: the distribution of random feedback, ``"default"`` or ``"xavier"``.
        num_classes: the number of logits, for direct feedback; by default the outputs of the model's last linear layer.
        seed: the seed of all random feedback; by default drawn from PyTorch's generator.
        inplace: convert ``model`` itself. Parameters remain the same objects, so existing optimisers remain valid;
            rules that learn feedback add parameters, which an optimiser has to be given.
        strict: raise an error instead of the warning.

    Returns:
        The converted model: a copy by default, with ``model`` unchanged.

    Raises:
        InputError: an unknown rule; a pattern that matches no layer; no layer to convert; direct feedback without
            ``num_classes`` in a model without a linear layer; ``copy_weights=False`` for a layer whose weight is
            computed from others; with ``strict``, a module that keeps learning by back-propagation. The model is
            unchanged.
    """
    expect_type("model", model, nn.Module)
    rules.get_law(feedback_init, (1, 1))
    layers = {name: module for name, module in model.named_modules() if class_with_rule(module) is not None}
    others = _without_rule(model)
    chosen = {name: choice for name, choice in _choose(rule, layers, others).items() if choice is not None}
    left = _asked_for(rule, others)
    if not chosen:
        named = f"; {_listed(others)} cannot learn by a rule" if others else ""
        raise InputError(
            f"nothing to convert: {type(model).__name__} has no convolution or linear layer that was chosen{named}"
        )
    direct = [choice.name for choice in chosen.values() if choice.mode == "direct"]
    if num_classes is None and direct:
        num_classes = _count_classes(layers, direct[0])
    if strict and left:
        raise InputError(
            f"strict: expected modules that can learn by a rule, got {_listed(left)}; "
            "they would keep learning by back-propagation"
        )
    if not copy_weights:
        _refuse_computed_weights({name: layers[name] for name in chosen})

    if not inplace:
        model = _copy(model)
    if seed is None:
        seed = seed_from(random_state(None, torch.device("cpu")))
        torch.rand(())  # advances the generator, so that the next conversion draws different feedback
    modules = dict(model.named_modules())
    _add_attentions(chosen, layers)
    for name, choice in chosen.items():
        layer: Any = modules[name]
        layer_seed = seed_from(f"{seed} {name}".encode())
        give_class(layer)
        layer.set_rule(choice, feedback_init=feedback_init, num_classes=num_classes, seed=layer_seed)
        generator = None if copy_weights else torch.Generator().manual_seed(layer_seed)
        if isinstance(layer, Lazy):
            layer.defer_weight("default" if copy_weights else feedback_init, generator)
        elif generator is not None:
            layer.reset_weight(generator)
    connect_direct_feedback(model)
    if left:
        shares = ", ".join(f"{rule} {share:.1%}" for rule, share in rule_shares(model).items())
        warnings.warn(
            f"convert: {_listed(left)} cannot learn by a rule and keep learning by back-propagation. Share of the "
            f"weights by rule: {shares}. Pass strict=True to make this an error, or the rule 'bp' for these modules "
            "to silence it",
            BionasWarning,
            stacklevel=2,
        )
    return model


def _choose(
    choice: RuleChoice, layers: Mapping[str, nn.Module], others: Mapping[str, nn.Module]
) -> dict[str, rules.Rule | None]:
    if isinstance(choice, (str, rules.Rule)):
        rule = rules.get(choice)
        return dict.fromkeys(layers, rule)
    if isinstance(choice, Mapping):
        patterns = {pattern: rules.get(name) for pattern, name in choice.items()}
        for pattern, rule in patterns.items():
            if any(fnmatchcase(name, pattern) for name in layers):
                continue
            matched = {name: module for name, module in others.items() if fnmatchcase(name, pattern)}
            if not matched:
                raise unknown("layer pattern", pattern, layers, "convert")
            if rule.mode != "weight":
                raise InputError(
                    f"convert: expected a layer pattern of layers that can learn by a rule, got {pattern!r}, which "
                    f"matches only {_listed(matched)}"
                )
        return {name: _first_match(patterns, name) for name in layers}
    if not callable(choice):
        raise InputError(f"rule: expected a rule, a mapping of patterns or a function, got {type(choice).__name__}")
    named = {name: choice(name, module) for name, module in layers.items()}
    return {name: None if rule is None else rules.get(rule) for name, rule in named.items()}


def _first_match(patterns: Mapping[str, rules.Rule], name: str) -> rules.Rule | None:
    return next((rule for pattern, rule in patterns.items() if fnmatchcase(name, pattern)), None)


def _asked_for(choice: RuleChoice, others: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules without a rule for which the caller wants one other than back-propagation."""
    if isinstance(choice, Mapping):
        patterns = {pattern: rules.get(name) for pattern, name in choice.items()}
        wanted = {name: _first_match(patterns, name) for name in others}
    elif isinstance(choice, (str, rules.Rule)):
        wanted = dict.fromkeys(others, rules.get(choice))
    else:
        return dict(others)
    return {name: others[name] for name, rule in wanted.items() if rule is not None and rule.mode != "weight"}


def _without_rule(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that learn by back-propagation whatever the rule."""
    found = {
        name: module
        for name, module, weights in layers_with_weights(model)
        if class_with_rule(module) is None and group_of(module) == "bp" and any(p.requires_grad for p in weights)
    }
    lazy = {
        name: module
        for name, module in model.named_modules()
        if class_with_rule(module) is None
        and any(is_lazy(p) for p in module.parameters(recurse=False))
        and group_of(module) == "bp"
    }
    return {**found, **lazy}


def _listed(modules: Mapping[str, nn.Module]) -> str:
    return ", ".join(f"{name or 'the model itself'} ({_kind(module)})" for name, module in modules.items())


def _kind(module: nn.Module) -> str:
    kind = type(module)
    base = next((base.__name__ for base in kind.__mro__[1:] if base in CLASSES), "")
    return f"{kind.__name__}, a subclass of {base}" if base else kind.__name__


def _count_classes(layers: Mapping[str, nn.Module], rule: str) -> int:
    linear = [module for module in layers.values() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"rule {rule!r} needs num_classes: the model has no linear layer to read it from")
    return linear[-1].out_features


def _refuse_computed_weights(layers: Mapping[str, nn.Module]) -> None:
    names = ("weight", "in_proj_weight", "q_proj_weight")
    computed = [name for name, layer in layers.items() if not any(own in layer._parameters for own in names)]
    if computed:
        raise InputError(
            "copy_weights: expected True for layers whose weight is computed from other tensors "
            f"({', '.join(computed)}), got False"
        )


def _add_attentions(chosen: dict[str, rules.Rule], layers: Mapping[str, nn.Module]) -> None:
    """Choose back-propagation for an attention of which only the output projection is chosen."""
    for name, layer in layers.items():
        if not isinstance(layer, nn.MultiheadAttention):
            continue
        output = f"{name}.out_proj" if name else "out_proj"
        if output in chosen and name not in chosen and not isinstance(layer, MultiheadAttention):
            chosen[name] = rules.get("bp")


def _copy(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for value in _attributes(model.modules()):
        if isinstance(value, Tensor) and not value.is_leaf:
            # Computed by a hook of the forward pass, as under weight_norm and pruning, which computes it again.
            memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def _attributes(modules: Iterable[nn.Module]) -> Iterable[Any]:
    for module in modules:
        yield from vars(module).values()
