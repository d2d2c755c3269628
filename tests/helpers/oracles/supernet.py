"""Maps the tensors of the published supernet onto ours."""

from __future__ import annotations

import re

import torch
from torch import nn

from bionas_fast.nn import FeedbackLayer
from bionas_fast.space import get_space
from bionas_fast.space.formats.darts import parse_published_name

#: Layers of a candidate in the published code (positions in its sequence) and in ours.
_SEPARABLE = {"op.1": "0.1", "op.2": "0.2", "op.5": "1.1", "op.6": "1.2"}
_DILATED = {"op.1": "1", "op.2": "2"}


def candidate_order(primitives: list[str]) -> list[int]:
    """For every published operation its index among the candidates of our space."""
    candidates = [parse_published_name(name) for name in primitives]
    plain = all(candidate.rule in (None, "bp") for candidate in candidates)
    ours = get_space("darts-bp" if plain else "bionas").candidates
    return [ours.index(candidate) for candidate in candidates]


def to_published(rows: torch.Tensor, primitives: list[str]) -> torch.Tensor:
    """Columns in our order → columns in the published order."""
    return rows[..., candidate_order(primitives)]


def to_ours(rows: torch.Tensor, primitives: list[str]) -> torch.Tensor:
    """Columns in the published order → columns in our order."""
    return rows[..., torch.tensor(candidate_order(primitives)).argsort()]


def our_name(name: str, primitives: list[str]) -> str:
    """The module path of a published tensor, without ``.weight`` or ``.bias``."""
    name = name.removesuffix(".weight").removesuffix(".bias")
    name = re.sub(r"(preprocess\d)\.op\.1", r"\1.1", name)
    edge_and_candidate = re.search(r"(?:_ops\.(\d+)\.)?_ops\.(\d+)\.(.+)$", name)
    if edge_and_candidate is None:
        return re.sub(r"\.conv_(\d)$", r".conv\1", name)
    edge, index, layer = edge_and_candidate.groups()
    primitive = primitives[int(index)]
    if primitive.startswith("sep"):
        layer = _SEPARABLE[layer]
    elif primitive.startswith("dil"):
        layer = _DILATED[layer]
    else:
        layer = re.sub(r"^conv_(\d)$", r"conv\1", layer)
    prefix = name[: edge_and_candidate.start()] + (f"edges.{edge}." if edge is not None else "")
    return f"{prefix}candidates.{candidate_order(primitives)[int(index)]}.{layer}"


def entries(
    index: list[str], flat: torch.Tensor, *, only_rules: bool = False
) -> dict[str, tuple[torch.Tensor, str | None]]:
    """name → (tensor, rule or None) out of a flat array."""
    out, offset = {}, 0
    for text in index:
        name, shape, *rule = text.split()
        if only_rules and not rule:
            continue
        size = [int(s) for s in shape.split("x")]
        count = int(torch.tensor(size).prod())
        out[name] = (flat[offset : offset + count].reshape(size), rule[0] if rule else None)
        offset += count
    assert offset == flat.numel()
    return out


def inject(module: nn.Module, arrays: dict[str, torch.Tensor], info: dict, primitives: list[str]) -> None:
    """Give ``module`` the published weights and the feedback of the very pass that was recorded."""
    feedback = {}
    if "feedback_flat" in arrays:
        feedback = entries(info["weights_index"], arrays["feedback_flat"], only_rules=True)
    modules = dict(module.named_modules())
    for name, (value, rule) in entries(info["weights_index"], arrays["weights_flat"]).items():
        layer = modules[our_name(name, primitives)]
        with torch.no_grad():
            getattr(layer, name.rpartition(".")[2]).copy_(value)
        if rule is None:
            assert not isinstance(layer, FeedbackLayer) or layer.rule == "bp", name
            continue
        assert layer.rule == rule, name
        stored = feedback[name][0].to(value.dtype)
        if rule == "usf":  # the recording rounds its constant to bfloat16
            torch.testing.assert_close(layer.feedback_weight().to(stored), stored, rtol=2**-8, atol=0)
        # With the magnitudes of that pass, every sign-concordant rule is frSF.
        layer.set_rule("fa" if rule == "fa" else "frsf")
        layer.set_feedback(stored)
        assert torch.equal(layer.feedback_weight().to(stored), stored), name


def gradients(module: nn.Module, names: list[str], primitives: list[str]) -> dict[str, torch.Tensor]:
    """The gradients of the published tensors of these names."""
    modules = dict(module.named_modules())
    return {name: getattr(modules[our_name(name, primitives)], name.rpartition(".")[2]).grad for name in names}
