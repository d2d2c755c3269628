"""Learning rules: the feedback weights B that carry the error down through a layer.

For a layer y = W ⋆ x + b every rule keeps the forward pass and the local weight gradient ∂W = x ⊗ δ_out; only
the error sent to the layer below changes, δ_in = convᵀ(δ_out; B). A rule is one small class that defines how B
is computed from W, and which tensors and random numbers it needs. No other file depends on the details of a rule.

A user-defined rule computes B in :meth:`Rule.feedback`::

    @bionas_fast.rules.register
    class Ternary(bionas_fast.rules.Rule):
        \"\"\"Sign of the larger half of the weights, zero elsewhere.\"\"\"

        name = "ternary"

        def feedback(self, weight, state):
            large = weight.abs() > weight.abs().median()
            return state.law.scale * weight.sign() * large

It then works wherever a rule is named: layers, ``convert``, search, reports.

Feedback can also be learned: under ``stores = "learned"`` B is a parameter of the layer. Its gradient is not that of
the loss, which does not depend on B, but what :meth:`Rule.update` makes of the gradient of W.

Sources: Lillicrap et al. 2016 (FA); Nøkland 2016 (DFA); Frenkel, Lefebvre & Bol 2021 (DRTP, sDFA); Liao, Leibo & Poggio
2016 and Moskovitz et al. 2018 (the sign-concordant rules uSF, brSF, frSF, and strict normalisation); Kolen & Pollack
1994 and Akrout et al. 2019 (KP); Webster, Choi & Ahn 2021 (DKP); Li & Benna 2024 (PFA).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from bionas_fast.errors import InputError, unknown
from bionas_fast.kernels.feedback.records import MODES
from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Law:
    """The uniform law U(-bound, bound) of the initial W, and the constant magnitude that replaces it.

    Attributes:
        bound: a; random magnitudes are |M| ~ U(0, a).
        scale: c, the magnitude of uSF.
    """

    bound: float
    scale: float


def xavier_law(shape: tuple[int, ...]) -> Law:
    """Return the law of Xavier uniform (Glorot & Bengio 2010): a = √(6/(fan_in+fan_out)), c = √(2/(fan_in+fan_out))."""
    fan_in, fan_out = _fans(shape)
    return Law(math.sqrt(6 / (fan_in + fan_out)), math.sqrt(2 / (fan_in + fan_out)))


def default_law(shape: tuple[int, ...]) -> Law:
    """Return the law of PyTorch's default, Kaiming uniform with slope √5: a = 1/√fan_in, c = 1/√(3·fan_in)."""
    fan_in, _ = _fans(shape)
    return Law(1 / math.sqrt(fan_in), 1 / math.sqrt(3 * fan_in))


#: What may take the place of the error at the logits under direct feedback.
SIGNALS = ("target", "sign")
LAWS = MappingProxyType({"default": default_law, "xavier": xavier_law})


def get_law(init: str, shape: tuple[int, ...]) -> Law:
    """Return the initial law of weights of ``shape`` under ``init``, ``"default"`` or ``"xavier"``.

    Raises:
        InputError: another ``init``.
    """
    if init not in LAWS:
        raise unknown("feedback_init", init, LAWS)
    return LAWS[init](tuple(shape))


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    # Like torch.nn.init: fan_out is not divided by groups.
    receptive = math.prod(shape[2:])
    return max(shape[1] * receptive, 1), max(shape[0] * receptive, 1)


@dataclass(frozen=True)
class FeedbackState:
    """The argument of :meth:`Rule.feedback` and :meth:`Rule.update` supplied by the layer.

    Attributes:
        law: the initial law of the layer's weights.
        stored: the tensor drawn once for this layer, or its learned feedback; None if the rule stores none.
        uniform: returns random numbers in [0, 1), shaped like the weight: fixed until the next training
            forward/backward pair, and the same on every device.
        fixed: returns random numbers in [0, 1) of any shape, always the same and on every device.
        filters: the dimension of the weight that numbers its filters, those of one output each.
        groups: the number of groups of a convolution, into which this dimension is divided.
    """

    law: Law
    stored: Tensor | None
    uniform: Callable[[], Tensor]
    fixed: Callable[[tuple[int, ...]], Tensor]
    filters: int = 0
    groups: int = 1


class Rule:
    """A learning rule. Subclass it, set ``name``, define :meth:`feedback`, and :func:`register` it.

    Attributes:
        name: its name in genotypes and options.
        mode: one of :data:`MODES`; by default, :meth:`feedback` computes B.
        stores: the tensor drawn once into the layer's buffer ``feedback``: ``"signed"`` M ~ U(-a, a),
            ``"magnitude"`` |M| ~ U(0, a), ``"direct"`` M of shape [classes, ...], or None. ``"learned"``: M ~ U(-a, a)
            is the initial value of the parameter ``feedback``, whose gradient :meth:`update` returns; in the mode
            ``direct`` it has the shape [classes, ...] and its gradient is e ⊗ x.
        redraws: whether every training forward/backward pair sees fresh random numbers.
        signal: with ``stores = "direct"``, what takes the place of the error at the logits: ``"target"``,
            -onehot(target); ``"sign"``, its sign; or None.
        mirrors: whether the stored tensor, of the weight's shape, learns in ``bionas_fast.mirror``.
        draws: whether :meth:`feedback` or :meth:`update` draws random numbers; otherwise a layer has no stream.
    """

    name: ClassVar[str] = ""
    mode: ClassVar[str] = "custom"
    stores: ClassVar[str | None] = None
    redraws: ClassVar[bool] = False
    signal: ClassVar[str | None] = None
    draws: ClassVar[bool] = True
    mirrors: ClassVar[bool] = False

    def feedback(self, weight: Tensor, state: FeedbackState) -> Tensor:
        """Compute B, of the same shape as the weight. Called without gradients at every forward pass that needs it."""
        raise NotImplementedError(f"rule {self.name!r} defines neither a mode nor feedback()")

    def update(self, weight: Tensor, weight_grad: Tensor, state: FeedbackState) -> Tensor:
        """Compute the gradient that the optimiser sees at the learned feedback, in every backward pass.

        The default is the gradient of the weight, as of Kolen & Pollack: an optimiser changes both alike, and weight
        decay makes their difference disappear.

        Args:
            weight: W of the pass.
            weight_grad: ∂W = x ⊗ δ_out, of the loss as it is scaled (``GradScaler``, gradient accumulation). The result
                should scale with it.
            state: as in :meth:`feedback`; ``stored`` is the learned feedback.

        Returns:
            A tensor of the weight's shape.
        """
        return weight_grad

    @property
    def random_sign(self) -> bool:
        """Whether the signs of B are drawn, independent of W. Skip connections are no baseline under such a rule."""
        return self.stores in ("signed", "direct", "learned")

    @property
    def learns(self) -> bool:
        """Whether B is a parameter that is learned in every step."""
        return self.stores == "learned"

    @property
    def summary(self) -> str:
        """The first line of the rule's docstring."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]

    def __repr__(self) -> str:
        return f"<rule {self.name}: {self.summary}>"


#: The values of :attr:`Rule.stores`, besides None.
STORES = ("signed", "magnitude", "direct", "learned")
_registry: Registry[Rule] = Registry("rule", owner=type)
R = TypeVar("R", bound=type[Rule])


def register(rule: R) -> R:
    """Register a rule class under its name. Use as a decorator.

    Raises:
        InputError: the name is missing, not a plain word, or taken by another rule.
    """
    instance = rule()
    name = instance.name
    if not name.isidentifier() or name != name.lower():
        raise InputError(f"a rule's name must be a lower-case word, such as 'usf'; {rule.__name__} has {name!r}")
    if rule.mode not in (*MODES, "custom"):
        raise unknown("mode", rule.mode, MODES, f"rule {name!r}")
    if rule.stores not in (None, *STORES):
        raise unknown("stores", rule.stores, STORES, f"rule {name!r}")
    if rule.signal not in (None, *SIGNALS):
        raise unknown("signal", rule.signal, SIGNALS, f"rule {name!r}")
    if rule.mirrors and rule.stores != "signed":
        raise InputError(f"rule {name!r}: expected stores = 'signed' of a weight mirror, got {rule.stores!r}")
    _registry.register(name, instance)
    return rule


def names() -> tuple[str, ...]:
    """Return the names of all registered rules, in the order of registration."""
    return _registry.names()


def get(rule: str | Rule) -> Rule:
    """Look up a rule by its name.

    Raises:
        InputError: an unknown name (the message suggests similar ones), or a rule that is not registered.
    """
    if isinstance(rule, Rule):
        if rule.name not in _registry or type(_registry.get(rule.name)) is not type(rule):
            raise InputError(
                f"rule {rule.name!r} is not registered: decorate its class with bionas_fast.rules.register"
            )
        return rule
    return _registry.get(rule)


def feedback_of(rule: Rule, weight: Tensor, state: FeedbackState) -> Tensor:
    """Compute B by a user-defined rule, in the dtype of the weight.

    Raises:
        InputError: the rule returned no tensor, or one of another shape than the weight.
    """
    return _shaped(rule.feedback(weight, state), weight, f"rule {rule.name!r} returned", "feedback")


def update_of(rule: Rule, weight: Tensor, weight_grad: Tensor, state: FeedbackState) -> Tensor:
    """Compute the gradient of the learned feedback of a rule, in the dtype of the weight.

    Raises:
        InputError: the rule returned no tensor, or one of another shape than the weight.
    """
    update = rule.update(weight, weight_grad, state)
    return _shaped(update, weight, f"update() of rule {rule.name!r} returned", "a gradient")


def _shaped(value: Tensor, weight: Tensor, returned: str, kind: str) -> Tensor:
    from torch import Tensor

    if not isinstance(value, Tensor):
        raise InputError(f"{returned} {type(value).__name__} as {kind}, not a tensor")
    if value.shape != weight.shape:
        raise InputError(f"{returned} {kind} of shape {list(value.shape)} for a weight of shape {list(weight.shape)}")
    return value.to(weight.dtype)


@register
class Backpropagation(Rule):
    """Back-propagation: B = W."""

    name = "bp"
    mode = "weight"


@register
class FeedbackAlignment(Rule):
    """Feedback alignment: B = M, drawn once from W's initial law and independent of W."""

    name = "fa"
    mode = "stored"
    stores = "signed"


@register
class UniformSign(Rule):
    """Uniform sign-concordant feedback (uSF): B = c · sign(W)."""

    name = "usf"
    mode = "sign"


@register
class BatchwiseRandomSign(Rule):
    """Batch-wise random-magnitude sign-concordant feedback (brSF): B = |M| ⊙ sign(W), M redrawn every batch."""

    name = "brsf"
    mode = "drawn_sign"
    redraws = True


@register
class FixedRandomSign(Rule):
    """Fixed random-magnitude sign-concordant feedback (frSF): B = |M₀| ⊙ sign(W), M₀ drawn once."""

    name = "frsf"
    mode = "stored_sign"
    stores = "magnitude"


@register
class DirectFeedbackAlignment(Rule):
    """Direct feedback alignment: the error at the logits through a fixed random B of shape [classes, ...]."""

    name = "dfa"
    mode = "direct"
    stores = "direct"


@register
class DirectRandomTargetProjection(Rule):
    """Direct random target projection: direct feedback of -onehot(target) instead of the error."""

    name = "drtp"
    mode = "direct"
    stores = "direct"
    signal = "target"


@register
class SignDirectFeedbackAlignment(Rule):
    """Direct feedback alignment of the sign of the error at the logits."""

    name = "sdfa"
    mode = "direct"
    stores = "direct"
    signal = "sign"


@register
class DirectKolenPollack(Rule):
    """Direct Kolen-Pollack: the error e at the logits through a B of shape [classes, ...], learned by e ⊗ x."""

    name = "dkp"
    mode = "direct"
    stores = "learned"


@register
class KolenPollack(Rule):
    """Kolen-Pollack: B is learned by the weight's gradient; weight decay aligns it with W."""

    name = "kp"
    mode = "stored"
    stores = "learned"


@register
class ProductFeedbackAlignment(Rule):
    """Product feedback alignment: B = F R, where F is random and fixed, and R is learned by Fᵀ ∂W."""

    name = "pfa"
    stores = "learned"

    def feedback(self, weight: Tensor, state: FeedbackState) -> Tensor:
        assert state.stored is not None
        return self._through(state.stored, state, transposed=False)

    def update(self, weight: Tensor, weight_grad: Tensor, state: FeedbackState) -> Tensor:
        return self._through(weight_grad, state, transposed=True)

    def first(self, size: int, state: FeedbackState) -> Tensor:
        """Draw F of every group, [groups, size, size], of variance 1/size: the expectation of F Fᵀ is the identity."""
        return (2 * state.fixed((state.groups, size, size)) - 1) * math.sqrt(3 / max(size, 1))

    def _through(self, tensor: Tensor, state: FeedbackState, transposed: bool) -> Tensor:
        """Multiply the filters of a tensor of the weight's shape by F or its transpose, group by group."""
        rows = tensor.movedim(state.filters, 0)
        size = rows.shape[0] // state.groups
        first = self.first(size, state)
        product = (first.mT if transposed else first) @ rows.reshape(state.groups, size, rows.shape[1:].numel())
        return product.reshape(rows.shape).movedim(0, state.filters)


@register
class WeightMirror(Rule):
    """Weight mirror: B is learned from noise in pauses of the training (``bionas_fast.mirror``)."""

    name = "wm"
    mode = "stored"
    stores = "signed"
    mirrors = True


class _StrictNormalisation(Rule):
    """Strict normalisation over slices of the weight."""

    draws = False

    def _scaled_signs(self, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Compute sign(W)·‖W_k‖/√n_k, where a slice W_k of n_k weights extends over ``dims``."""
        from torch import linalg

        count = math.prod([weight.shape[d] for d in dims])
        return weight.sign() * (linalg.vector_norm(weight, dim=dims, keepdim=True) / math.sqrt(max(count, 1)))


@register
class StrictNormalisation(_StrictNormalisation):
    """Strict normalisation: B = sign(W) · ‖W_k‖/√n_k, with the norm of every filter of n_k weights."""

    name = "nsf"

    def feedback(self, weight: Tensor, state: FeedbackState) -> Tensor:
        return self._scaled_signs(weight, tuple(d for d in range(weight.dim()) if d != state.filters))


@register
class LayerStrictNormalisation(_StrictNormalisation):
    """Strict normalisation of the layer: B = sign(W) · ‖W‖/√n, with the norm of all n weights."""

    name = "nsf_layer"

    def feedback(self, weight: Tensor, state: FeedbackState) -> Tensor:
        return self._scaled_signs(weight, tuple(range(weight.dim())))


__all__ = [
    "LAWS",
    "MODES",
    "FeedbackState",
    "Law",
    "Rule",
    "default_law",
    "get",
    "get_law",
    "names",
    "register",
    "xavier_law",
]
