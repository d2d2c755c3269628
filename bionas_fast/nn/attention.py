"""MultiheadAttention: torch.nn's layer whose projections have a learning rule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bionas_fast import rules
from bionas_fast.errors import ShapeError
from bionas_fast.nn.error_path import ErrorPath
from bionas_fast.nn.feedback import FeedbackLayer, random_state, seed_from
from bionas_fast.nn.layers import FEEDBACK_ARGUMENTS, Linear, check_rule
from bionas_fast.nn.leaf import leaf
from bionas_fast.nn.plain import become

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Projection(FeedbackLayer):
    """Rule and feedback of one input projection of :class:`MultiheadAttention`, which holds the weight."""

    def __init__(self, owner: MultiheadAttention, index: int) -> None:
        super().__init__()
        # In a list, so that the owner is no submodule of its projection.
        self._owner, self._index = [owner], index

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The part of the owner's weight, [embed_dim, features]."""
        return self._owner[0].projections()[self._index][0]

    def effective_weight(self) -> Tensor:
        """Return the part of the owner's weight."""
        return self.weight

    def project(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute [N, L, embed_dim] from [N, L, features]."""
        return self._project(input, weight, bias)

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}"


class MultiheadAttention(ErrorPath, nn.MultiheadAttention):
    __doc__ = (
        "``torch.nn.MultiheadAttention`` with a learning rule for its four projections; within the attention itself, "
        "which has no weights, the error is that of back-propagation.\n\n"
        "The projections of query, key and value are the submodules ``q_proj``, ``k_proj`` and ``v_proj``, that of the "
        "output is ``out_proj``. Names and shapes of the parameters are torch.nn's. Its arguments, and\n"
        + FEEDBACK_ARGUMENTS
    )

    q_proj: Projection
    k_proj: Projection
    v_proj: Projection

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rule: str | rules.Rule = "bp",
        feedback_init: str = "default",
        num_classes: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_rule(rule, feedback_init, dropout=dropout, bias=bias, kdim=kdim, vdim=vdim, device=device, dtype=dtype)
        sizes = (kdim, vdim, batch_first, device, dtype)
        super().__init__(embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, *sizes)
        if generator is not None:
            self.reset_weight(generator)
        if seed is None:
            seed = seed_from(random_state(generator, self.projections()[0][0].device))
        arguments: dict[str, Any] = {"feedback_init": feedback_init, "num_classes": num_classes}
        self.set_rule(rule, seed=seed, **arguments)
        out: Any = self.out_proj
        out.__class__ = Linear
        out.set_rule(rule, seed=seed_from(f"{seed} out_proj".encode()), **arguments)

    def set_rule(
        self,
        rule: str | rules.Rule,
        *,
        feedback_init: str = "default",
        num_classes: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set the rule of the projections of query, key and value, as :meth:`FeedbackLayer.set_rule` does."""
        if seed is None:
            seed = seed_from(random_state(generator, self.projections()[0][0].device))
        for index, name in enumerate(_PROJECTIONS):
            if name not in self._modules:
                self.add_module(name, Projection(self, index).train(self.training))
            layer_seed = seed_from(f"{seed} {name}".encode())
            arguments: dict[str, Any] = {"feedback_init": feedback_init, "num_classes": num_classes}
            getattr(self, name).set_rule(rule, seed=layer_seed, **arguments)

    @property
    def rule(self) -> str:
        """The rule of the projections of query, key and value."""
        return self.q_proj.rule

    def reset_weight(self, generator: torch.Generator | None) -> None:
        """Redraw the weights as torch.nn does; the feedback is unchanged."""
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:
                torch.manual_seed(seed_from(random_state(generator, torch.device("cpu"))) >> 1)
            self._reset_parameters()

    def reset_parameters(self) -> None:
        """Redraw weights and feedback."""
        self._reset_parameters()
        self.out_proj.reset_parameters()
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        for name in _PROJECTIONS:
            layer = getattr(self, name)
            direct = layer.direct
            classes = len(layer.feedback) if direct is not None and layer.feedback is not None else None
            seed = seed_from(random_state(None, layer.weight.device) + name.encode())
            layer.set_rule(layer.rule, feedback_init=layer.feedback_init, num_classes=classes, seed=seed)
            layer.direct = direct

    def to_torch(self) -> nn.Module:
        """Become ``nn.MultiheadAttention``, with the same parameters; return it."""
        for name in _PROJECTIONS:
            del self._modules[name]
        output: Any = self.out_proj
        become(output.to_torch(), NonDynamicallyQuantizableLinear)
        self.__dict__.pop("_true_in", None)
        return become(self, nn.MultiheadAttention)

    def projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return weight and bias of the projections of query, key and value."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention; arguments and results as in ``torch.nn.MultiheadAttention``.

        Args:
            is_causal: a hint that ``attn_mask`` is causal; the mask is required, and decides.

        Raises:
            InputError: mismatched shapes.
        """
        if isinstance(query, Proxy):
            masks = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return leaf(self, query, key, value, *masks)
        batched = query.dim() == 3
        if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
            shapes = [list(tensor.shape) for tensor in (query, key, value)]
            raise ShapeError(f"query, key, value: expected 3 dimensions each, or 2 without the batch, got {shapes}")
        if is_causal and attn_mask is None:
            raise ShapeError("attn_mask: expected a mask, as is_causal is only a hint, got None")
        inputs = [query, key, value]
        if not batched:
            inputs = [tensor.unsqueeze(0) for tensor in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            inputs = [tensor.transpose(0, 1) for tensor in inputs]
        output, weights = self._attend(inputs, key_padding_mask, attn_mask, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _attend(
        self, inputs: list[Tensor], padding: Tensor | None, attn_mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with tensors [N, L, features] to [N, L, embed_dim] and, on request, weights [N, heads, L, S]."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            layer.project(input, *parameters)
            for layer, input, parameters in zip(layers, inputs, self.projections(), strict=True)
        )
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([t, b.expand(len(t), 1, -1)], 1) for t, b in ((k, self.bias_k), (v, self.bias_v)))
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(*t.shape[:2], 1, t.shape[3])], 2) for t in (k, v))
        mask = self._mask(padding, attn_mask, (q, k))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * math.sqrt(1 / self.head_dim) @ k.transpose(2, 3)
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            if dropout:
                weights = F.dropout(weights, dropout)
            attended = weights @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), weights

    def _mask(
        self, padding: Tensor | None, attn_mask: Tensor | None, queries_and_keys: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """Combine the masks to one that is added to the scores [N, heads, L, S]."""
        q, k = queries_and_keys
        batch, heads, length = q.shape[:3]
        given = length, k.shape[2] - (self.bias_k is not None) - self.add_zero_attn
        total = None
        if attn_mask is not None:
            if tuple(attn_mask.shape) not in (given, (batch * heads, *given)):
                raise ShapeError(
                    f"attn_mask: expected shape {list(given)} or {[batch * heads, *given]}, got {list(attn_mask.shape)}"
                )
            total = _additive(attn_mask, q)
            total = total if total.dim() == 2 else total.unflatten(0, (batch, heads))
        if padding is not None:
            if tuple(padding.shape) != (batch, given[1]):
                raise ShapeError(f"key_padding_mask: expected shape {[batch, given[1]]}, got {list(padding.shape)}")
            rows = _additive(padding, q)[:, None, None]
            total = rows if total is None else total + rows
        # The added keys are visible.
        return None if total is None else F.pad(total, (0, k.shape[2] - given[1]))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise ShapeError(f"mask: expected bool or floating point, got {mask.dtype}")
    return mask.to(like.dtype)
