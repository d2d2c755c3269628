"""Shares of a model's weights by the rule they learn by."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from bionas_fast.errors import expect_type
from bionas_fast.nn.attention import MultiheadAttention
from bionas_fast.nn.error_path import ErrorPath
from bionas_fast.nn.feedback import FeedbackLayer
from bionas_fast.nn.hebbian import HebbianConv2d, HebbianLinear
from bionas_fast.nn.predictive import PredictiveConv2d

#: Layers that scale or shift every number by itself: no weight matrix carries an error.
_ELEMENTWISE = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
_EMBEDDING = (nn.Embedding, nn.EmbeddingBag)


def rule_shares(model: nn.Module) -> dict[str, float]:
    """Compute the share of the weights of ``model`` that learn by each rule.

    Weights are all parameters but learned feedback, biases included, and the plastic weights of Hebbian layers. Tied
    weights count once; the weights of a lazy layer count when their shape is known.

    Args:
        model: any module, converted or not.

    Returns:
        Shares of all weights, which sum to 1, in descending order; empty for a model without weights. The keys are the
        names of rules and

        - ``"bp"``: back-propagation, under this rule and in all modules without a rule, such as recurrent layers;
        - ``"elementwise"``: normalisation layers and PReLU, which carry no error through a weight matrix;
        - ``"embedding"``: embeddings, which send no error down, so that every rule is the same for them;
        - ``"hebbian"`` and ``"predictive"``: Hebbian layers, predictive-coding layers with local credit, and networks
          that are trained by predictive coding;
        - ``"pepita"`` and ``"forward-forward"``: layers of networks that are trained so, by their ``learns_by``;
        - ``"frozen"``: parameters that do not require gradients.
    """
    expect_type("model", model, nn.Module)
    counts = count_weights(model)
    total = sum(counts.values())
    return {rule: count / total for rule, count in counts.items()}


def count_weights(model: nn.Module) -> dict[str, int]:
    """Count the weights of ``model`` by the rule they learn by; the keys are those of :func:`rule_shares`."""
    groups: dict[int, tuple[Tensor, str]] = {}
    for _, module, weights in layers_with_weights(model):
        for weight in weights:
            group = group_of(module) if weight.requires_grad else "frozen"
            known = groups.get(id(weight))
            if known is None or _precedence(group) > _precedence(known[1]):
                groups[id(weight)] = weight, group
    counts: dict[str, int] = {}
    for tied, group in groups.values():
        counts[group] = counts.get(group, 0) + tied.numel()
    for module in model.modules():
        if isinstance(module, (HebbianConv2d, HebbianLinear)):
            counts["hebbian"] = counts.get("hebbian", 0) + module.plasticity.numel()
    return dict(sorted(((group, count) for group, count in counts.items() if count), key=lambda item: -item[1]))


def _precedence(group: str) -> int:
    """Order the groups of a tied weight: one use by back-propagation suffices for it to learn so."""
    if group == "bp":
        return 2
    return 0 if group in ("elementwise", "embedding") else 1


def layers_with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Parameter]]]:
    """Iterate over (name, module, own weights); those of a parametrisation belong to the parametrised module."""
    holders = [module._modules["parametrizations"] for module in model.modules() if parametrize.is_parametrized(module)]
    parts = {id(part) for holder in holders if holder is not None for part in holder.modules()}
    for name, module in model.named_modules():
        if id(module) in parts:
            continue
        learned = module.learned_parameters if isinstance(module, ErrorPath) else ()
        weights = [weight for own, weight in module.named_parameters(recurse=False) if own not in learned]
        if parametrize.is_parametrized(module):
            weights += module.parametrizations.parameters()
        weights = [weight for weight in weights if not is_lazy(weight)]
        if weights:
            yield name, module, weights


def group_of(module: nn.Module) -> str:
    """Return the group of a module's own parameters: one of the keys of :func:`rule_shares`."""
    if (trainer := getattr(module, "learns_by", None)) is not None:
        return trainer
    if isinstance(module, (FeedbackLayer, MultiheadAttention)):
        return module.rule
    if isinstance(module, PredictiveConv2d):
        return "predictive" if module.credit == "local" else "bp"
    if isinstance(module, _EMBEDDING):
        return "embedding"
    # Variants of other libraries carry the word in their name, and one number per channel.
    named = "norm" in type(module).__name__.lower() and all(p.dim() == 1 for p in module.parameters(recurse=False))
    return "elementwise" if isinstance(module, _ELEMENTWISE) or named else "bp"
