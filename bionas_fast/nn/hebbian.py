"""HebbianConv2d and HebbianLinear: layers whose weights learn from their inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from bionas_fast import backends
from bionas_fast.errors import InputError, ShapeError, unknown
from bionas_fast.kernels.hebbian import reference
from bionas_fast.nn import repeats, switches
from bionas_fast.nn.layers import expect_no_rule
from bionas_fast.nn.leaf import leaf
from bionas_fast.nn.padding import pad
from bionas_fast.nn.plain import become, plain_class
from bionas_fast.nn.transforms import refuse_transforms
from bionas_fast.ops import hebbian as ops

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from bionas_fast.ops.geometry import Geometry

MODES = ("hebbian", "mixed")
#: On a GPU, the updates from one reading whether they were finite to the next.
READ_EVERY = 50

_ARGUMENTS = """
    The plastic weights H are a buffer. A forward pass in training mode updates them once, after it has used them; the
    step does not depend on batch size or resolution. There is no update in eval mode, inside
    :func:`frozen_plasticity`, or between the batches selected by ``every``. The error is propagated through the
    weights that the pass used.

    Args:
        rule: see :func:`bionas_fast.functional.hebbian_activity`.
        mode: ``"hebbian"``: the weights are H. ``"mixed"``: W + α ⊙ H with learned W and α (Miconi et al. 2018).
        rate: η; or with ``adaptive`` η of :func:`bionas_fast.functional.adaptive_rate`.
        adaptive: whether every neuron has a separate rate, which decreases as the norm of its weights approaches 1.
        temperature: the temperature of the soft competition.
        k: the number of channels of a group that win at every position under ``hard_wta``.
        similarity: by which channels compete under ``hard_wta``, ``soft_wta`` and ``softhebb``: ``"output"``, or
            ``"raised_cosine"`` (see :func:`bionas_fast.functional.raised_cosine`), which does not favour long filters.
        averaging: τ of the threshold of ``bcm``, θ ← (1 − τ) θ + τ · mean of u², after each update; the first batch
            sets θ.
        normalisation: of H: ``none``, ``clamp`` to ±1, ``unit`` L2 norm of every neuron; or ``max``: of the update.
        every: H is updated at every n-th batch in training mode.
        norm: the norm of every neuron's initial weights; None for the initialisation of torch.nn.

    Raises:
        InputError: an unknown rule, mode or normalisation; groups that do not divide the channels; a number out of
            range. In a forward pass: H would no longer be finite; the message names layer and step, and H is
            unchanged. On a GPU, where reading would wait for it, H stays unchanged from that step on, and the error
            comes within 50 updates, or earlier by ``eval()`` or ``expect_finite()``.

    As in torch.nn, ``reset_parameters`` starts anew: it redraws H as the constructor does, and W, the bias, α and
    ``steps``. In mode ``"hebbian"``, ``weight`` is H, so that initialisation functions for ``model.apply`` reach it.

    Attributes:
        name: the name of the layer in messages; :func:`name_layers` sets it to the module path in a model.
        plasticity: H.
        steps: int64, the number of batches seen in training mode.
        threshold: θ of ``bcm``, [K]; None under other rules.
    """


@dataclass(frozen=True)
class _Settings:
    """The arguments of a plastic layer, validated; see the layers."""

    rule: str
    mode: str
    rate: float
    adaptive: bool
    temperature: float
    normalisation: str
    every: int
    norm: float | None
    k: int
    similarity: str
    averaging: float

    def __post_init__(self) -> None:
        for kind, word, known in (
            ("rule", self.rule, ops.RULES),
            ("mode", self.mode, MODES),
            ("normalisation", self.normalisation, ops.NORMALISATIONS),
        ):
            if word not in known:
                raise unknown(kind, word, known)
        for name, number in (("rate", self.rate), ("temperature", self.temperature), ("norm", self.norm)):
            if number is not None and not (math.isfinite(number) and number >= 0):
                raise InputError(f"{name}: expected a finite number of at least 0, got {number}")
        if not 0 < self.averaging <= 1:
            raise InputError(f"averaging: expected above 0 and at most 1, got {self.averaging}")
        if self.every < 1:
            raise InputError(f"every: expected at least 1, got {self.every}")
        ops.check_similarity(self.rule, self.similarity)


class _Plastic(nn.Module):
    """Mixin of the plastic weights and their updates, for both layers."""

    weight: Any
    bias: Any
    plasticity: Tensor
    steps: Tensor
    threshold: Tensor | None
    _frozen_in: tuple[int, ...] = ()
    #: The first step whose update was not finite, on the device; 0 for none. None without updates to read.
    _failed: Tensor | None = None
    _unread: int = 0

    def _set_up(self, settings: _Settings) -> None:
        ops.check_winners(settings.rule, settings.k, len(self.weight) // getattr(self, "groups", 1))
        self.rule = settings.rule
        self.mode = settings.mode
        self.rate = settings.rate
        self.adaptive = settings.adaptive
        self.temperature = settings.temperature
        self.normalisation = settings.normalisation
        self.every = settings.every
        self.k = settings.k
        self.similarity = settings.similarity
        self.averaging = settings.averaging
        self.norm = settings.norm
        self.name = type(self).__name__
        weight = self.weight.detach().clone()
        if settings.mode == "mixed":
            self.plastic_scale = nn.Parameter(torch.empty_like(weight))
        else:
            del self._parameters["weight"]
        self.register_buffer("plasticity", weight)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=weight.device))
        self.register_buffer("threshold", weight.new_zeros(len(weight)) if settings.rule == "bcm" else None)
        self._reset_plasticity()
        self.register_load_state_dict_pre_hook(_refuse_another_shape)

    def to_torch(self) -> nn.Module:
        """Become the layer of torch.nn whose weight is that of this layer's next pass; return it."""
        with torch.no_grad():
            weight = nn.Parameter(self.effective_weight().clone())
        self._parameters.pop("plastic_scale", None)
        for name in ("plasticity", "steps", "threshold"):
            del self._buffers[name]
        for name in (*(field.name for field in fields(_Settings)), "name", "_frozen_in", "_failed", "_unread"):
            self.__dict__.pop(name, None)
        self.weight = weight
        kind = plain_class(self)
        assert kind is not None
        return become(self, kind)

    if not TYPE_CHECKING:  # an attribute in torch.nn's classes

        @property
        def weight(self) -> Any:
            """torch.nn's parameter; in mode ``hebbian``, which has none, H."""
            own = self._parameters.get("weight")
            if own is None:
                own = self._buffers.get("plasticity")
            if own is None:
                raise AttributeError("weight")
            return own

    def reset_parameters(self) -> None:
        """Redraw all weights as the constructor does, and count the steps from 0."""
        super().reset_parameters()  # type: ignore[misc]  # torch.nn's, of the class beside this mixin
        if "plasticity" in self._buffers:
            self._reset_plasticity()

    @torch.no_grad()
    def _reset_plasticity(self) -> None:
        """Set H, from initial values that it holds in mode ``hebbian``."""
        self.steps.zero_()
        if self.threshold is not None:
            self.threshold.zero_()
        if self.mode == "mixed":
            self.plastic_scale.fill_(0.01)
            self.plasticity.zero_()
        elif self.norm is not None:
            unit = F.normalize(self.plasticity.flatten(1), dim=1).view_as(self.plasticity)
            self.plasticity.copy_(self.norm * unit)

    def effective_weight(self) -> Tensor:
        """Compute the weights of the next forward pass: H, or W + α ⊙ H."""
        # A copy: autograd saves it, and the update changes H in place. Graphs for inference have no update.
        copied = torch.is_grad_enabled() and (self.training or not backends.recorded())
        return self._weight_of(ops.snapshot(self.plasticity) if copied else self.plasticity)

    def _weight_of(self, plasticity: Tensor) -> Tensor:
        return plasticity if self.mode == "hebbian" else self.weight + self.plastic_scale * plasticity

    def _pass(self) -> tuple[Tensor, bool]:
        """Return the weights of this forward pass, and whether it moves H: a repeat by checkpointing does not."""
        now = repeats.current()
        if now is None:
            return self.effective_weight(), True
        seen = now.once(self, self.plasticity.clone, lambda plasticity: plasticity)
        return self._weight_of(seen), not now.repeated

    @torch.no_grad()
    def _learn(self, x: Tensor, u: Tensor, **geometry: Unpack[Geometry]) -> None:
        """Update H once with the input and the output, without bias, of a pass."""
        if not self.training or switches.is_on(self, "_frozen_in"):
            return
        refuse_transforms(self.name)
        self.steps += 1
        if self.every > 1 and int(self.steps) % self.every:
            return
        moved = self.plasticity.clone()
        rate = ops.adaptive_rate(moved, self.rate) if self.adaptive else self.rate
        u, threshold = u.detach().to(moved.dtype), self.threshold
        if threshold is not None:
            square = reference.mean_square(u)
            # The first batch sets it; a comparison on the device waits for no value.
            threshold = torch.where(threshold == 0, square, threshold)
        ops.hebbian_update(
            moved,
            x.detach().to(moved.dtype),
            u,
            rule=self.rule,
            rate=rate,
            temperature=self.temperature,
            normalisation=self.normalisation,
            k=self.k,
            similarity=self.similarity,
            threshold=threshold,
            **geometry,
        )
        finite = torch.isfinite(moved).all()
        if _waits(moved.device):
            self._learn_unread(moved, finite)
            return
        if not finite:
            raise self._not_finite(int(self.steps))
        self.plasticity.copy_(moved)
        if self.threshold is not None and threshold is not None and u.numel():
            self.threshold.copy_(threshold.lerp(square, self.averaging))

    def _learn_unread(self, moved: Tensor, finite: Tensor) -> None:
        """Update H unless this or an earlier update was not finite, without reading whether that is so."""
        if self._failed is None or self._failed.device != moved.device:
            self._failed = torch.zeros_like(self.steps)
        self._failed.copy_(torch.where(finite | (self._failed > 0), self._failed, self.steps))
        self.plasticity.copy_(torch.where(self._failed > 0, self.plasticity, moved))
        self._unread += 1
        if self._unread >= READ_EVERY:
            self.expect_finite()

    def expect_finite(self) -> None:
        """Read whether all updates were finite.

        Raises:
            InputError: one was not; H is as before that update, and learns again.
        """
        if not self._unread:
            return
        assert self._failed is not None
        self._unread, step = 0, int(self._failed)
        if step:
            self._failed.zero_()
            raise self._not_finite(step)

    def _not_finite(self, step: int) -> InputError:
        return InputError(
            f"{self.name}: the Hebbian update of step {step} made weights that are not finite; "
            f"lower its rate ({self.rate:g}) or bound the weights (normalisation='clamp' or 'unit')"
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the end of training reads whether all updates were finite, see :meth:`expect_finite`."""
        if not mode:
            self.expect_finite()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule!r}, mode={self.mode!r}, rate={self.rate:g}"


def _waits(device: torch.device) -> bool:
    """Whether reading a number waits for the device."""
    return device.type != "cpu"


def expect_finite(model: nn.Module) -> None:
    """Read whether all updates of the model's Hebbian layers were finite.

    Raises:
        InputError: one was not.
    """
    for module in model.modules():
        if isinstance(module, _Plastic):
            module.expect_finite()


def _refuse_another_shape(layer: _Plastic, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    current, saved = layer.plasticity, state_dict.get(f"{prefix}plasticity")
    if saved is not None and saved.shape != current.shape:
        raise InputError(
            f"{prefix}plasticity: the checkpoint holds shape {list(saved.shape)}, this layer {list(current.shape)}"
        )


class HebbianConv2d(_Plastic, nn.Conv2d):
    __doc__ = (
        "Convolution with plastic weights, [N, C, H, W] → [N, K, H', W']; takes the arguments of ``torch.nn.Conv2d`` "
        "(without a bias by default), and\n" + _ARGUMENTS
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rule: str = "softhebb",
        mode: str = "hebbian",
        rate: float = 0.01,
        adaptive: bool = False,
        temperature: float = 1.0,
        normalisation: str = "none",
        every: int = 1,
        norm: float | None = None,
        k: int = 1,
        similarity: str = "output",
        averaging: float = 0.1,
    ) -> None:
        expect_no_rule(ops.RULES, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
        settings = _Settings(
            rule, mode, rate, adaptive, temperature, normalisation, every, norm, k, similarity, averaging
        )
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels % groups:
                raise InputError(f"groups: {groups} does not divide {name}={channels}")
        geometry = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, padding_mode, device, dtype)
        self._set_up(settings)

    def forward(self, x: Tensor) -> Tensor:
        """Compute [N, K, H', W'] from [N, C, H, W]; the batch dimension is optional."""
        if isinstance(x, Proxy):
            return leaf(self, x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ShapeError(f"x: expected [N, {self.in_channels}, H, W] or one image, got shape {list(x.shape)}")
        weight, moves = self._pass()
        x, padding = pad(self, x)
        u = F.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)
        if moves:
            self._learn(x, u, stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups)
        return u if self.bias is None else u + self.bias.view(-1, 1, 1)


class HebbianLinear(_Plastic, nn.Linear):
    __doc__ = (
        "Linear map with plastic weights, [..., D] → [..., K]; takes the arguments of ``torch.nn.Linear`` (without a "
        "bias by default), and\n" + _ARGUMENTS
    )

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rule: str = "softhebb",
        mode: str = "hebbian",
        rate: float = 0.01,
        adaptive: bool = False,
        temperature: float = 1.0,
        normalisation: str = "none",
        every: int = 1,
        norm: float | None = None,
        k: int = 1,
        similarity: str = "output",
        averaging: float = 0.1,
    ) -> None:
        expect_no_rule(ops.RULES, bias=bias, device=device, dtype=dtype)
        settings = _Settings(
            rule, mode, rate, adaptive, temperature, normalisation, every, norm, k, similarity, averaging
        )
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(settings)

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., K] from [..., D]."""
        if isinstance(x, Proxy):
            return leaf(self, x)
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(f"x: expected [..., {self.in_features}], got shape {list(x.shape)}")
        weight, moves = self._pass()
        u = F.linear(x, weight)
        if moves:
            self._learn(x.reshape(-1, x.shape[-1]), u.reshape(-1, u.shape[-1]))
        return u if self.bias is None else u + self.bias


class Triangle(nn.Module):
    """ReLU(u − mean of u over channels)^power, the activation of SoftHebb networks; [N, K, *positions]."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, u: Tensor) -> Tensor:
        return ops.triangle(u, self.power)

    def extra_repr(self) -> str:
        return f"power={self.power:g}"


def name_layers(model: nn.Module) -> None:
    """Name every plastic layer of ``model`` by its module path, for messages."""
    for name, module in model.named_modules():
        if isinstance(module, _Plastic):
            module.name = f"{name} ({type(module).__name__})"


@contextmanager
def frozen_plasticity(model: nn.Module) -> Iterator[None]:
    """Disable Hebbian updates in ``model`` inside the block, in every mode; for architecture steps.

    Passes that other threads run at the same time are not affected.
    """
    with switches.switched_on([m for m in model.modules() if isinstance(m, _Plastic)], "_frozen_in"):
        yield
