"""The base of all layers with a learning rule: the rule, its tensors, its random stream, its metrics."""

from __future__ import annotations

import ctypes
import hashlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bionas_fast import backends, rules, torch_private
from bionas_fast.errors import InputError, ShapeError
from bionas_fast.kernels.feedback import reference
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.nn.direct import DirectFeedback
from bionas_fast.nn.redraw import Redrawing
from bionas_fast.nn.to_torch import become, plain_class
from bionas_fast.nn.true_gradients import ErrorPath
from bionas_fast.ops import feedback as ops
from bionas_fast.rules import FeedbackState, Law

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bionas_fast.ops.geometry import Geometry

_MAX_SEED = 2**64
#: The buffers of a rule; a checkpoint of torch.nn's layer lacks them.
FEEDBACK_BUFFERS = ("feedback", "feedback_stream")
#: The other attributes that a rule gives to a layer.
_OF_A_RULE = ("rule", "feedback_init", "law", "direct", "true_gradient", "_seed", "_deferred")
_NOT_CONNECTED = (
    "a layer with rule {!r} needs the error at the logits of its model: "
    "call bionas_fast.nn.connect_direct_feedback(model, num_classes=...) once"
)


class FeedbackLayer(Redrawing, ErrorPath):
    """Mixin of a layer with a ``weight`` whose error is propagated through B instead of W.

    Attributes:
        law: the distribution of W's initial values.

    Buffers, all in ``state_dict``:
        feedback: the tensor that the rule draws once: M for ``fa``, |M₀| for ``frsf``, [classes, ...] for ``dfa``.
        feedback_stream: int64 [2], seed and index of the draw, if the rule redraws. The backward pass of a training
            step advances it, so every forward/backward pair uses new numbers and a resumed run continues the stream;
            or the optimiser does, see :func:`redraw_every_step`.
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ("feedback",)  # drawn once

    weight: Tensor
    law: Law
    feedback: Tensor | None
    feedback_stream: Tensor | None

    def set_rule(
        self,
        rule: str | rules.Rule,
        *,
        feedback_init: str = "default",
        num_classes: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set the learning rule of the layer and draw the rule's tensors. The weights are unchanged.

        Args:
            rule: a registered rule or its name.
            feedback_init: the distribution of W's initial values and of random feedback: ``"default"`` (PyTorch's) or
                ``"xavier"`` (the paper's).
            num_classes: the number of logits, for ``dfa`` only; without it B is drawn when the layer's model is
                connected to its logits (``connect_direct_feedback``).
            seed: the seed of the layer's random feedback, 0 ≤ seed < 2⁶⁴. By default it is derived from the state of
                PyTorch's generator without advancing it: initial weights do not depend on the rule.
            generator: the generator that replaces PyTorch's in deriving the seed.

        Raises:
            InputError: an unknown rule or initialisation, a seed or a number of classes out of range.
        """
        known = rules.get(rule)
        if num_classes is not None and num_classes < 1:
            raise InputError(f"num_classes: expected at least 1, got {num_classes}")
        if seed is not None and not 0 <= seed < _MAX_SEED:
            raise InputError(f"seed: expected 0 <= seed < 2**64, got {seed}")
        rules.get_law(feedback_init, (1, 1))
        if known.mode != "weight" and self.weight is not None and self.weight.is_complex():
            raise InputError(f"rule {known.name!r}: expected a layer of real numbers, got {self.weight.dtype}")
        self.rule = known.name
        self.feedback_init = feedback_init
        self.direct: DirectFeedback | None = None
        self.register_buffer("feedback", None)
        self.register_buffer("feedback_stream", None)
        weight = self.effective_weight()
        if is_lazy(weight):
            # The shape is unknown; the layer calls this again when it knows.
            arguments = {"num_classes": num_classes, "seed": seed, "generator": generator}
            self._deferred: dict[str, Any] = {"init": feedback_init, **arguments}
            return
        self.law = self._initial_law()
        if seed is None:
            seed = seed_from(random_state(generator, weight.device))
        self._seed = seed - _MAX_SEED if seed >= _MAX_SEED // 2 else seed
        # A user-defined rule may draw at any time; of the built-in rules, only those that redraw have a stream.
        if known.redraws or known.mode == "custom":
            self.feedback_stream = self._new_stream()
        if known.stores == "direct":
            if num_classes is not None:
                self._draw(self._direct_shape(num_classes))
        elif known.stores is not None:
            self._draw(tuple(weight.shape))

    def effective_weight(self) -> Tensor:
        """Return W of the next forward pass; under a parametrisation, without advancing a power iteration."""
        if not hasattr(self, "parametrizations"):
            return self.weight
        training = [module for module in self.parametrizations.modules() if module.training]
        for module in training:
            module.training = False
        try:
            return self.weight
        finally:
            for module in training:
                module.training = True

    def _new_stream(self) -> Tensor:
        return torch.tensor([self._seed, 0], dtype=torch.int64, device=self.effective_weight().device)

    def _draw(self, shape: tuple[int, ...]) -> None:
        numbers = reference.uniform(shape, self._new_stream())
        if rules.get(self.rule).stores == "direct":
            numbers = (2 * numbers - 1) * rules.get_law(self.feedback_init, shape).bound
        elif rules.get(self.rule).stores == "magnitude":
            numbers = numbers * self.law.bound
        else:
            numbers = (2 * numbers - 1) * self.law.bound
        self.feedback = numbers.to(self.effective_weight().dtype)

    def _direct_shape(self, num_classes: int) -> tuple[int, ...]:
        """Return the shape of B under direct feedback, [classes, ...]."""
        shape = self.effective_weight().shape
        return (num_classes, shape[1] * getattr(self, "groups", 1), *shape[2:])

    def connect(self, direct: DirectFeedback, num_classes: int | None) -> None:
        """Receive the error through ``direct``, and draw B if it is missing. See ``connect_direct_feedback``."""
        lazy = is_lazy(self.effective_weight())
        if self.feedback is None and not (lazy and self._deferred["num_classes"]):
            if num_classes is None:
                raise InputError(f"rule {self.rule!r} needs num_classes, the number of logits")
            if lazy:
                self._deferred["num_classes"] = num_classes
            else:
                self._draw(self._direct_shape(num_classes))
        self.direct = direct

    def _initial_law(self) -> Law:
        return rules.get_law(self.feedback_init, tuple(self.effective_weight().shape))

    def set_feedback(self, feedback: Tensor) -> None:
        """Replace the tensor that the rule drew once: B for ``fa`` and ``dfa``, a B or |M₀| for ``frsf``.

        Raises:
            InputError: the rule stores no feedback, or the shape differs.
        """
        stored = self.feedback
        if stored is None:
            raise InputError(f"rule {self.rule!r} stores no feedback to replace")
        if stored.shape != feedback.shape:
            raise ShapeError(f"feedback: expected shape {list(stored.shape)}, got {list(feedback.shape)}")
        value = feedback.detach()
        stored.copy_(value.abs() if rules.get(self.rule).stores == "magnitude" else value)

    def feedback_weight(self) -> Tensor:
        """Compute B of the next backward pass, shaped like ``weight`` ([classes, ...] for ``dfa``); detached."""
        if rules.get(self.rule).mode == "direct" and not self.true_gradient:
            return self._direct_feedback().clone()
        weight = self.effective_weight()
        return ops.feedback_weight(weight, self._feedback(weight)).clone()

    def feedback_angle(self) -> float:
        """Compute the angle between B and W in degrees: 0 for back-propagation, about 90 for independent B and W.

        Raises:
            InputError: for ``dfa``, whose B has another shape.
        """
        b, w = self._comparable()
        cosine = (b @ w / (b.norm() * w.norm())).clamp(-1, 1)
        return math.degrees(math.acos(cosine.item()))

    def feedback_norm_ratio(self) -> float:
        """Compute ‖B‖ / ‖W‖.

        Raises:
            InputError: for ``dfa``, whose B has another shape.
        """
        b, w = self._comparable()
        return (b.norm() / w.norm()).item()

    def _comparable(self) -> tuple[Tensor, Tensor]:
        b, w = self.feedback_weight(), self.effective_weight().detach()
        if rules.get(self.rule).mode == "direct":
            raise InputError(f"rule {self.rule!r} has no B of the weight's shape to compare with")
        return b.double().flatten(), w.double().flatten()

    def _feedback(self, weight: Tensor) -> Feedback:
        """Describe the construction of B for this forward pass, from the ``weight`` it uses."""
        rule = rules.get(self.rule)
        if self.true_gradient or rule.mode in ("weight", "direct"):
            return ops.BACKPROPAGATION
        if not self.training and backends.recorded():
            return ops.BACKPROPAGATION  # a graph for inference, of torch's own ops only
        law = self.law
        advance = rule.redraws and self.training and self.redraws_every_pass
        if rule.mode != "custom":
            buffers = self._buffers  # attributes of a module are looked up more slowly
            stored, stream = buffers["feedback"], buffers["feedback_stream"]
            return Feedback(rule.mode, stored, stream, law.bound, law.scale, advance)
        with torch.no_grad():
            state = FeedbackState(law, self.feedback, partial(self._uniform, weight))
            b = rules.feedback_of(rule, weight.detach(), state)
        return Feedback("stored", b, self.feedback_stream, advance=advance)

    def next_draw(self) -> None:
        if self.feedback_stream is not None and rules.get(self.rule).redraws:
            self.feedback_stream[1].add_(1)

    def _uniform(self, weight: Tensor) -> Tensor:
        assert self.feedback_stream is not None
        return reference.uniform(weight.shape, self.feedback_stream).to(weight.dtype)

    def _is_direct(self, input: Tensor) -> bool:
        """Whether the error reaches ``input`` from the logits at this forward pass."""
        if self.true_gradient or rules.get(self.rule).mode != "direct":
            return False
        if not self.training and (backends.recorded() or not self._has_logits()):
            return False
        # Inside a transform, an input need not show that an outer one differentiates it.
        return torch.is_grad_enabled() and (input.requires_grad or torch_private.in_transform())

    def _has_logits(self) -> bool:
        """Whether the pass is one of the connected model; in evaluation, part of a model may run without it."""
        return self.direct is None or self.direct.runs()

    def _direct_feedback(self) -> Tensor:
        if self.feedback is None:
            raise InputError(_NOT_CONNECTED.format(self.rule))
        return self.feedback

    def _collect(self, token: Tensor) -> None:
        if self.direct is None:
            raise InputError(_NOT_CONNECTED.format(self.rule))
        self.direct.collect(token)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, **geometry: Unpack[Geometry]) -> Tensor:
        """Run the layer as a convolution, with layer-wise or direct feedback."""
        if not self._is_direct(input):
            return ops.feedback_conv(input, weight, bias, self._feedback(weight), **geometry)
        output = ops.feedback_conv(input.detach(), weight, bias, **geometry)
        self._collect(ops.direct_conv(input, self._direct_feedback(), output.shape[2:], **geometry))
        return output

    def _project(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer as a linear map, with layer-wise or direct feedback."""
        if not self._is_direct(input):
            return ops.feedback_linear(input, weight, bias, self._feedback(weight))
        if input.dim() < 2:
            raise ShapeError(f"input: rule {self.rule!r} needs a batch, [N, ..., in_features]; got {list(input.shape)}")
        output = ops.feedback_linear(input.detach(), weight, bias)
        self._collect(ops.direct_linear(input, self._direct_feedback()))
        return output

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Feedback made on the meta device has no values to move: they follow from the seed.
        on_meta = self._feedback_is_on_meta()
        super()._apply(fn, recurse)
        if on_meta:
            self._materialise_feedback()
        return self

    def _feedback_is_on_meta(self) -> bool:
        return any(self._buffers[name] is not None and self._buffers[name].is_meta for name in FEEDBACK_BUFFERS)

    @torch.no_grad()
    def _materialise_feedback(self) -> None:
        if self.effective_weight().is_meta:
            return
        if self.feedback_stream is not None:
            self.feedback_stream = self._new_stream()
        if self.feedback is not None:
            self._draw(tuple(self.feedback.shape))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        *lists: list[str],
    ) -> None:
        """Load the layer; if the checkpoint has no feedback, as torch.nn's, the layer's own is unchanged."""
        absent = [prefix + name for name in FEEDBACK_BUFFERS if self._buffers.get(name) is not None]
        if any(name in state_dict for name in absent):
            absent = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *lists)
        missing[:] = [name for name in missing if name not in absent]
        if absent and self._feedback_is_on_meta():
            self._materialise_feedback()

    def to_torch(self) -> nn.Module:
        """Become the layer of torch.nn that this one extends, with the same parameters; return it."""
        kind = plain_class(self)
        if kind is None:
            raise InputError("expected a layer that torch.nn has")
        if is_lazy(self.effective_weight()):
            raise InputError("expected a layer of known shape; run the model once before")
        for name in FEEDBACK_BUFFERS:
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        for name in _OF_A_RULE:
            self.__dict__.pop(name, None)
        return become(self, kind)

    def __prepare_scriptable__(self) -> NoReturn:
        raise InputError(
            "torch.jit.script: expected layers that TorchScript can compile, got one with a learning rule; use "
            "torch.jit.trace, torch.compile or torch.export, or script the torch.nn model and load its weights"
        )


def connect_direct_feedback(model: nn.Module, num_classes: int | None = None) -> nn.Module:
    """Connect the layers of ``model`` that learn by direct feedback, if any, to the error at its logits.

    ``convert`` and the network builders call this; a model built otherwise needs one call.

    Args:
        model: a model that returns logits [N, classes], or a tuple that starts with them.
        num_classes: the number of logits; required if layers were created without it.

    Returns:
        ``model``.

    Raises:
        InputError: a layer does not know the number of classes and ``num_classes`` is not given.
    """
    direct = DirectFeedback()
    layers = [m for m in model.modules() if isinstance(m, FeedbackLayer) and rules.get(m.rule).stores == "direct"]
    if not layers:
        return model
    for layer in layers:
        layer.connect(direct, num_classes)
    model.register_forward_pre_hook(direct.start, with_kwargs=True)
    model.register_forward_hook(direct.finish)
    return model


def random_state(generator: torch.Generator | None, device: torch.device) -> bytes:
    """Return the state of a generator, by default that of PyTorch's on ``device``, without advancing it."""
    if generator is None and device.type == "cuda" and torch.cuda.is_available():
        state = torch.cuda.get_rng_state(device)
    else:
        state = (generator or torch.default_generator).get_state()
    # Read as plain memory: under FakeTensorMode no tensor operation reaches real values.
    return ctypes.string_at(state.data_ptr(), state.numel())


def seed_from(data: bytes) -> int:
    """Derive a 64-bit seed from ``data``."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
