"""The base of all layers with a learning rule: the rule, its tensors, its random stream, its metrics."""

from __future__ import annotations

import ctypes
import hashlib
import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bionas_fast import backends, rules, torch_private
from bionas_fast.errors import InputError, ShapeError
from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.nn import learned, repeats
from bionas_fast.nn.direct import OUTSIDE, DirectFeedback, DirectPass, Logits, active_pass, connection, detach
from bionas_fast.nn.error_path import ErrorPath, Mirrored
from bionas_fast.nn.plain import become, plain_class
from bionas_fast.nn.redraw import Redrawing
from bionas_fast.ops import feedback as ops
from bionas_fast.ops.feedback import draws
from bionas_fast.rules import Law

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bionas_fast.ops.geometry import Geometry

_MAX_SEED = 2**64
#: The tensors of a rule; a checkpoint of torch.nn's layer lacks them.
FEEDBACK_TENSORS = ("feedback", "feedback_stream")
#: The other attributes that a rule gives to a layer.
_OF_A_RULE = ("rule", "feedback_init", "law", "direct", "meeting", "_true_in", "_seed", "_deferred")
_NOT_CONNECTED = (
    "a layer with rule {!r} needs the error at the logits of its model: "
    "call bionas_fast.nn.connect_direct_feedback(model, num_classes=...) once"
)


class _Path(NamedTuple):
    """The path of the error that the first pass of a checkpoint fixes, for its repeats.

    Attributes:
        feedback: the construction of B; its stream is a copy.
        in_graph: whether the first pass left a graph, whose nodes advance the stream; a re-entrant one leaves none.
        direct: the pass of the model that the layer ran in, under direct feedback.
        true_gradient: whether the path is the true gradient's.
    """

    feedback: Feedback
    in_graph: bool
    direct: DirectPass | None
    true_gradient: bool

    def copy(self) -> _Path:
        """Return a copy that later passes do not change."""
        stream, direct = self.feedback.stream, self.direct
        feedback = self.feedback if stream is None else self.feedback._replace(stream=stream.clone())
        return self._replace(
            feedback=feedback, in_graph=torch.is_grad_enabled(), direct=None if direct is None else direct.copy()
        )


class FeedbackLayer(Redrawing, ErrorPath):
    """Mixin of a layer with a ``weight`` whose error is propagated through B instead of W.

    Attributes:
        law: the distribution of W's initial values.
        meeting: the number of layers with direct feedback whose errors are added at one state of a network; B is drawn
            that many times smaller.

    Buffers, all in ``state_dict``:
        feedback: the tensor that the rule draws once: M for ``fa``, |M₀| for ``frsf``, [classes, ...] for direct
            feedback. A parameter if the rule learns it, as ``kp`` does; W, if it is a parameter, hands its gradient on
            to it.
        feedback_stream: int64 [2], seed and index of the draw, if the rule draws more numbers than ``feedback``. If it
            redraws, the backward pass of a training step advances it, so every forward/backward pair uses new numbers
            and a resumed run continues the stream; or the optimiser does, see :func:`redraw_every_step`.
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ("feedback",)  # drawn once
    learned_parameters: ClassVar[tuple[str, ...]] = ("feedback",)
    #: The dimension of the weight that numbers its filters.
    filters: ClassVar[int] = 0

    weight: Tensor
    law: Law
    meeting: int = 1
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

        Under a rule that learns B the layer gets a parameter ``feedback``; an optimiser made before does not know it.

        Args:
            rule: a registered rule or its name.
            feedback_init: the distribution of W's initial values and of random feedback: ``"default"`` (PyTorch's) or
                ``"xavier"`` (the paper's).
            num_classes: the number of logits, for direct feedback only; without it B is drawn when the layer's model is
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
        self.feedback_init = feedback_init
        self.direct: tuple[DirectFeedback, ...] | None = self.__dict__.get("direct")
        if not known.learns or self.__dict__.get("rule") != known.name:
            self._parameters.pop("feedback", None)
            self.register_buffer("feedback", None)
        self.register_buffer("feedback_stream", None)
        self.rule = known.name
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
        if known.redraws or known.mirrors or (known.mode == "custom" and known.draws):
            self.feedback_stream = self._new_stream()
        if known.mode == "direct":
            if num_classes is not None:
                self._draw(self._direct_shape(num_classes))
        elif known.stores is not None:
            self._draw(tuple(weight.shape))

    def effective_weight(self) -> Tensor:
        """Return W of the next forward pass; under a parametrisation, without advancing a power iteration."""
        parametrizations = self._modules.get("parametrizations")
        if parametrizations is None:
            return self.weight
        training = [module for module in parametrizations.modules() if module.training]
        for module in training:
            module.training = False
        try:
            return self.weight
        finally:
            for module in training:
                module.training = True

    def _new_stream(self, device: torch.device | None = None) -> Tensor:
        device = self.effective_weight().device if device is None else device
        return torch.tensor([self._seed, 0], dtype=torch.int64, device=device)

    def _draw(self, shape: tuple[int, ...], device: torch.device | None = None) -> None:
        numbers = draws.uniform(shape, self._new_stream(device))
        if rules.get(self.rule).mode == "direct":
            numbers = (2 * numbers - 1) * rules.get_law(self.feedback_init, shape).bound / self.meeting
        elif rules.get(self.rule).stores == "magnitude":
            numbers = numbers * self.law.bound
        else:
            numbers = (2 * numbers - 1) * self.law.bound
        self._store(numbers)

    def _store(self, value: Tensor) -> None:
        """Keep the tensor that the rule draws once; as a parameter if the rule learns it and the layer has weights."""
        weight = self.effective_weight()
        value = value.to(weight.dtype)
        if not rules.get(self.rule).learns or "weight" in self._buffers:
            self.feedback = value
            return
        own = self._parameters.get("feedback")
        if own is not None and (own.shape, own.device, own.dtype) == (value.shape, value.device, value.dtype):
            with torch.no_grad():
                own.copy_(value)
            return
        self._buffers.pop("feedback", None)
        # A weight may be computed from other parameters.
        others = (own for name, own in self.named_parameters() if name not in ("bias", "feedback"))
        learns = weight.requires_grad or any(own.requires_grad for own in others)
        self.register_parameter("feedback", nn.Parameter(value, requires_grad=learns))

    def _rule_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the rule, by name."""
        found = ((name, self._buffers.get(name, self._parameters.get(name))) for name in FEEDBACK_TENSORS)
        return {name: tensor for name, tensor in found if tensor is not None}

    def _direct_shape(self, num_classes: int) -> tuple[int, ...]:
        """Return the shape of B under direct feedback, [classes, ...]."""
        shape = self.effective_weight().shape
        return (num_classes, shape[1] * getattr(self, "groups", 1), *shape[2:])

    def connect(self, direct: DirectFeedback, num_classes: int | None, former: DirectFeedback | None = None) -> None:
        """Receive the error through ``direct``, and draw B for that many classes. See ``connect_direct_feedback``.

        Args:
            former: the connection of the same model that this one replaces.
        """
        lazy = is_lazy(self.effective_weight())
        known = self._deferred["num_classes"] if lazy else self._classes()
        if num_classes is None and known is None:
            raise InputError(f"rule {self.rule!r} needs num_classes, the number of logits")
        if lazy:
            self._deferred["num_classes"] = num_classes or known
        elif num_classes not in (None, known):
            self._draw(self._direct_shape(num_classes))
        self.direct = (*(other for other in self.direct or () if other is not former), direct)

    def _classes(self) -> int | None:
        return None if self.feedback is None else len(self.feedback)

    def _initial_law(self) -> Law:
        return rules.get_law(self.feedback_init, tuple(self.effective_weight().shape))

    def mirrored(self) -> tuple[Mirrored, ...]:
        feedback, stream = self.feedback, self.feedback_stream
        if not rules.get(self.rule).mirrors or feedback is None or stream is None:
            return ()
        return (Mirrored(self.effective_weight().detach(), feedback, stream, self.filters),)

    def set_feedback(self, feedback: Tensor) -> None:
        """Replace the stored tensor: B for ``fa``, direct feedback and rules that learn it, a B or |M₀| for ``frsf``.

        Raises:
            InputError: the rule stores no feedback, or the shape differs.
        """
        stored = self.feedback
        if stored is None:
            raise InputError(f"rule {self.rule!r} stores no feedback to replace")
        if stored.shape != feedback.shape:
            raise ShapeError(f"feedback: expected shape {list(stored.shape)}, got {list(feedback.shape)}")
        value = feedback.detach()
        with torch.no_grad():
            stored.copy_(value.abs() if rules.get(self.rule).stores == "magnitude" else value)

    def feedback_weight(self) -> Tensor:
        """Compute B of the next backward pass, shaped like ``weight`` or, if direct, [classes, ...]; detached."""
        if rules.get(self.rule).mode == "direct" and not self.true_gradient:
            return self._direct_feedback().detach().clone()
        weight = self.effective_weight()
        return ops.feedback_weight(weight, self._describe(weight, self.true_gradient)).clone()

    def feedback_angle(self) -> float:
        """Compute the angle between B and W in degrees: 0 for back-propagation, about 90 for independent B and W.

        Raises:
            InputError: for direct feedback, whose B has another shape.
        """
        b, w = self._comparable()
        cosine = (b @ w / (b.norm() * w.norm())).clamp(-1, 1)
        return math.degrees(math.acos(cosine.item()))

    def feedback_norm_ratio(self) -> float:
        """Compute ‖B‖ / ‖W‖.

        Raises:
            InputError: for direct feedback, whose B has another shape.
        """
        b, w = self._comparable()
        return (b.norm() / w.norm()).item()

    def _comparable(self) -> tuple[Tensor, Tensor]:
        b, w = self.feedback_weight(), self.effective_weight().detach()
        if rules.get(self.rule).mode == "direct":
            raise InputError(f"rule {self.rule!r} has no B of the weight's shape to compare with")
        return b.double().flatten(), w.double().flatten()

    def pass_feedback(self, weight: Tensor) -> Feedback:
        """Describe the construction of B for this forward pass, from the ``weight`` it uses; call once a pass."""
        if self._stateless():
            return self._describe(weight, False)
        now = repeats.current()
        if now is None:
            return self._describe(weight, self.true_gradient)
        return self._path(now, weight).feedback

    def _stateless(self) -> bool:
        """Whether this pass reads nothing that another one changes, and repeats none that did."""
        if self.feedback_stream is not None or self.direct is not None or self.true_gradient:
            return False
        return torch.compiler.is_compiling() or not torch_private.in_backward_pass()

    def _path(self, now: repeats.Pass, weight: Tensor) -> _Path:
        """Return the path of the error of a pass inside checkpoints: that of the first pass if this is a repeat."""
        path: _Path | None = now.recall(self)
        direct = None if self.direct is None else active_pass(self.direct)
        if path is None:
            true = self.true_gradient and not now.repeated
            path = _Path(self._describe(weight, true), torch.is_grad_enabled(), direct, true)
        elif not path.in_graph:
            path = path._replace(feedback=self._redrawn(path.feedback, weight))
        if direct is not None and direct.repeated:
            path = path._replace(direct=direct)
        if path.direct is direct is not None and not torch.is_grad_enabled():
            direct.defer()
        now.keep(self, path.copy())
        return path

    def _redrawn(self, feedback: Feedback, weight: Tensor) -> Feedback:
        """Attach this layer's stream, which the backward pass advances, to the feedback of an earlier draw."""
        stream, drawn = self.feedback_stream, feedback.stream
        if stream is None or drawn is None:
            return feedback
        if feedback.mode == "drawn_sign" and not torch.equal(stream, drawn):
            b = ops.feedback_weight(weight, feedback)
            return Feedback("stored", b, stream, advance=feedback.advance)
        return feedback._replace(stream=stream)

    def _describe(self, weight: Tensor, true_gradient: bool) -> Feedback:
        rule = rules.get(self.rule)
        if true_gradient or rule.mode in ("weight", "direct"):
            return ops.BACKPROPAGATION
        if not self.training and backends.recorded():
            return ops.BACKPROPAGATION  # a graph for inference, of torch's own ops only
        law = self.law
        advance = rule.redraws and self.training and self.redraws_every_pass
        if rule.mode != "custom":
            buffers = self._buffers  # attributes of a module are looked up more slowly
            stored = buffers["feedback"] if "feedback" in buffers else _detached(self.feedback)
            return Feedback(rule.mode, stored, buffers["feedback_stream"], law.bound, law.scale, advance)
        with torch.no_grad():
            state = self._part(weight).state(_detached(self.feedback), self.feedback_stream, weight.dtype)
            b = rules.feedback_of(rule, weight.detach(), state)
        return Feedback("stored", b, self.feedback_stream, advance=advance)

    def coupled(self, weight: Tensor) -> Tensor:
        """Return the weight for this forward pass, which hands its gradient on to learned feedback; call once a pass.

        A frozen weight hands nothing on.
        """
        feedback = self._learned()
        if feedback is None or rules.get(self.rule).mode == "direct":
            return weight
        learns = torch.is_grad_enabled() and (weight.requires_grad or torch_private.in_transform())
        recorded = backends.recorded()
        # A trace must be the same with and without gradients; in evaluation it has torch's own ops only.
        if not (self.training if recorded else learns):
            return weight
        return learned.couple(weight, feedback, (self._part(weight),), self.feedback_stream)

    def _learned(self) -> Tensor | None:
        """Return the learned feedback; None if there is none."""
        # Not by its place among the parameters, which a replica of nn.DataParallel lacks.
        return None if "feedback" in self._buffers else self.feedback

    def _part(self, weight: Tensor) -> learned.Part:
        groups = getattr(self, "groups", 1)
        return learned.Part(self.rule, self.law, tuple(weight.shape), filters=self.filters, groups=groups)

    def next_draw(self) -> None:
        if self.feedback_stream is not None and rules.get(self.rule).redraws:
            self.feedback_stream[1].add_(1)

    def _is_direct(self, input: Tensor) -> bool:
        """Whether the error reaches ``input`` from the logits at this forward pass."""
        if rules.get(self.rule).mode != "direct":
            return False
        if not self.training and (backends.recorded() or not self._has_logits()):
            return False
        # Inside a transform, an input need not show that an outer one differentiates it.
        if not torch.is_grad_enabled():
            return False
        if not (input.requires_grad or self._learns_directly() or torch_private.in_transform()):
            return False
        now = repeats.current()
        path = None if now is None else now.peek(self)
        return not (self.true_gradient if path is None else path.true_gradient)

    def _has_logits(self) -> bool:
        """Whether the pass is one of the connected model; in evaluation, part of a model may run without it."""
        return self.direct is None or active_pass(self.direct) is not None or torch_private.in_backward_pass()

    def _learns_directly(self) -> bool:
        """Whether a pass through direct feedback gives B a gradient."""
        own = self._learned()
        return own is not None and own.requires_grad and self.weight.requires_grad

    def _direct_feedback(self) -> Tensor:
        """Return B, [classes, ...], detached unless a pass gives it a gradient."""
        if self.feedback is None:
            raise InputError(_NOT_CONNECTED.format(self.rule))
        learns = self._learns_directly() or (self._learned() is not None and torch_private.in_transform())
        return self.feedback if learns else self.feedback.detach()

    def _collect(self, output: Tensor, token: Tensor) -> Tensor:
        """Send the error at the logits to ``token``, and return ``output``; call once a pass."""
        if self.direct is None:
            raise InputError(_NOT_CONNECTED.format(self.rule))
        signal = rules.get(self.rule).signal
        now = repeats.current()
        path = None if now is None else self._path(now, token)
        direct = active_pass(self.direct) if path is None else path.direct
        if direct is None:
            if now is None and not torch.compiler.is_compiling() and torch_private.in_backward_pass():
                return output  # a repeat by an unknown kind of checkpoint; only the first token counts
            raise InputError(OUTSIDE)
        if now is None or not now.repeated or direct.repeated:
            direct.collect(token, signal)
            return output
        # A repeat whose first pass left no graph has no logits to be added to: its error arrived before.
        return output if path is None or path.in_graph else direct.deliver(output, token, signal)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, **geometry: Unpack[Geometry]) -> Tensor:
        """Run the layer as a convolution, with layer-wise or direct feedback."""
        if not self._is_direct(input):
            return ops.feedback_conv(input, self.coupled(weight), bias, self.pass_feedback(weight), **geometry)
        output = ops.feedback_conv(input.detach(), weight, bias, **geometry)
        return self._collect(output, ops.direct_conv(input, self._direct_feedback(), output.shape[2:], **geometry))

    def _project(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer as a linear map, with layer-wise or direct feedback."""
        if not self._is_direct(input):
            return ops.feedback_linear(input, self.coupled(weight), bias, self.pass_feedback(weight))
        if input.dim() < 2:
            raise ShapeError(f"input: rule {self.rule!r} needs a batch, [N, ..., in_features]; got {list(input.shape)}")
        output = ops.feedback_linear(input.detach(), weight, bias)
        return self._collect(output, ops.direct_linear(input, self._direct_feedback()))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Feedback made on the meta device has no values to move: they follow from the seed.
        on_meta = self._feedback_is_on_meta()
        super()._apply(fn, recurse)
        if on_meta and not self._feedback_is_on_meta():
            self._materialise_feedback(next(iter(self._rule_tensors().values())).device)
        return self

    def _feedback_is_on_meta(self) -> bool:
        return any(tensor.is_meta for tensor in self._rule_tensors().values())

    @torch.no_grad()
    def _materialise_feedback(self, device: torch.device) -> None:
        if self.feedback_stream is not None:
            self.feedback_stream = self._new_stream(device)
        if self.feedback is not None:
            self._draw(tuple(self.feedback.shape), device)

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
        absent = [prefix + name for name in self._rule_tensors()]
        if any(name in state_dict for name in absent):
            absent = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *lists)
        missing[:] = [name for name in missing if name not in absent]
        if absent and self._feedback_is_on_meta() and not (weight := self.effective_weight()).is_meta:
            self._materialise_feedback(weight.device)

    def _plain_class(self) -> type[nn.Module] | None:
        return plain_class(self)

    def to_torch(self) -> nn.Module:
        """Become the layer of torch.nn that this one extends, with the same parameters; return it."""
        kind = self._plain_class()
        if kind is None:
            raise InputError("expected a layer that torch.nn has")
        if is_lazy(self.effective_weight()):
            raise InputError("expected a layer of known shape; run the model once before")
        for name in FEEDBACK_TENSORS:
            self._parameters.pop(name, None)
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


def connect_direct_feedback(
    model: nn.Module, num_classes: int | None = None, *, logits: Logits | None = None, class_dim: int | None = None
) -> nn.Module:
    """Connect the layers of ``model`` that learn by direct feedback, if any, to the error at its logits.

    ``convert`` and the network builders call this; a model built otherwise needs one call. Another call replaces the
    first, as after the head has been replaced: B of another number of classes is drawn again.

    The logits are [N, classes] or dense, [N, classes, *positions] or [N, *positions, classes]. The error of a sample is
    then the sum over its positions, and every layer receives it at all of its own positions. A linear layer whose rows
    are the positions, [N · positions, features], receives the error of each.

    Args:
        model: a model that returns logits, a tuple that starts with them, or a mapping or dataclass with an entry
            ``logits``.
        num_classes: the number of logits; required if layers were created without it.
        logits: where the logits are otherwise: the name or index of an entry of the output; a function of the output
            that returns one of its tensors; or the path of the module that returns them, required if the model computes
            its loss itself.
        class_dim: the dimension of the classes in dense logits; required for [N, classes, classes].

    Returns:
        ``model``.

    Raises:
        InputError: a layer does not know the number of classes and ``num_classes`` is not given. In a forward pass: the
            output has no such logits, or they have another number of classes.
    """
    layers = [m for m in model.modules() if isinstance(m, FeedbackLayer) and rules.get(m.rule).mode == "direct"]
    if not layers:
        return model
    former = connection(model)
    if former is not None:
        detach(former, model)
    direct = DirectFeedback(logits, class_dim)
    for layer in layers:
        layer.connect(direct, num_classes, former)
    direct.attach(model)
    return model


def _detached(stored: Tensor | None) -> Tensor | None:
    """Return the stored tensor of a rule without gradient, which only learned feedback has."""
    return None if stored is None else stored.detach()


def one_target_rules(model: nn.Module) -> tuple[str, ...]:
    """Return the learning rules of a model's layers that need the cross-entropy for one target per sample."""
    found = dict.fromkeys(layer.rule for layer in model.modules() if isinstance(layer, FeedbackLayer))
    return tuple(rule for rule in found if rules.get(rule).signal is not None)


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
