"""Conv1d, Conv2d, Conv3d and Linear: torch.nn's layers, with the same signatures, and a learning rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.errors import InputError, ShapeError
from bionas_fast.kernels.window import Window
from bionas_fast.nn.feedback import FeedbackLayer
from bionas_fast.nn.leaf import leaf
from bionas_fast.nn.padding import pad
from bionas_fast.ops import feedback as ops
from bionas_fast.ops.geometry import Geometry

FEEDBACK_ARGUMENTS = """
    Args:
        rule: the learning rule, by name or as a :class:`bionas_fast.rules.Rule`. ``"bp"`` is torch.nn's own layer.
        feedback_init: the distribution of W and random feedback: ``"default"`` (PyTorch's, Kaiming uniform with slope
            √5) or ``"xavier"`` (Xavier uniform, bias 0; the paper's).
        num_classes: the number of logits, for direct feedback only; may be set when the model is connected.
        seed: the seed of the random feedback; see :meth:`FeedbackLayer.set_rule`.
        generator: the generator of the weights and of the default seed.

    Raises:
        InputError: an unknown rule or initialisation; a seed out of range.
    """


def check_rule(rule: str | rules.Rule, feedback_init: str, **others: Any) -> None:
    """Check the rule of a layer.

    Args:
        others: arguments of torch.nn's layer, among which a rule without its name ends up.

    Raises:
        InputError: an unknown rule or initialisation; another argument is a rule.
    """
    expect_no_rule(rules.names(), **others)
    rules.get(rule)
    rules.get_law(feedback_init, (1, 1))


def expect_no_rule(known: Collection[str], **others: Any) -> None:
    """Raise an InputError if one of a layer's arguments is a rule, which must be given by ``rule=``."""
    for name, value in others.items():
        if isinstance(value, rules.Rule) or (isinstance(value, str) and value in known):
            wanted = f"expected that of torch.nn's layer, got {value!r}"
            raise InputError(f"{name}: {wanted}; a learning rule is rule={value!r}")


class Initialised(FeedbackLayer):
    """Initialisation, shared by all layers in the shape of torch.nn's."""

    bias: Any

    def _set_up(
        self,
        rule: str | rules.Rule,
        feedback_init: str,
        num_classes: int | None,
        seed: int | None,
        generator: torch.Generator | None,
    ) -> None:
        """Draw weights and feedback, after torch.nn's constructor."""
        self.feedback_init = feedback_init
        self.reset_weight(generator)
        self.set_rule(rule, feedback_init=feedback_init, num_classes=num_classes, seed=seed, generator=generator)

    def reset_parameters(self) -> None:
        """Redraw weights and feedback."""
        if "feedback_init" not in self.__dict__:
            return  # torch.nn's constructor calls this before the rule is set; ours sets up later
        self.reset_weight(None)
        classes = len(self.feedback) if rules.get(self.rule).mode == "direct" and self.feedback is not None else None
        direct = self.direct
        self.set_rule(self.rule, feedback_init=self.feedback_init, num_classes=classes)
        self.direct = direct

    def reset_weight(self, generator: torch.Generator | None, init: str | None = None) -> None:
        """Redraw weights and bias; the feedback is unchanged.

        Args:
            generator: the generator that replaces PyTorch's.
            init: the distribution; by default ``feedback_init``.
        """
        own, bias = self._outputs_first(self.weight), self.bias
        weight = own
        if generator is not None and generator.device.type != weight.device.type:
            # Drawn on the generator's device: the same values on every device.
            weight = torch.empty_like(weight, device=generator.device)
            bias = None if bias is None else torch.empty_like(bias, device=generator.device)
        if (init or self.feedback_init) == "xavier":
            nn.init.xavier_uniform_(weight, generator=generator)
            if bias is not None:
                nn.init.zeros_(bias)
        else:
            # The calls of torch.nn, so that a seed gives the same weights.
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if bias is not None:
                bound = rules.get_law("default", tuple(weight.shape)).bound if weight[:1].numel() else 0.0
                nn.init.uniform_(bias, -bound, bound, generator=generator)
        if weight is not own:
            with torch.no_grad():
                own.copy_(weight)
                if bias is not None and self.bias is not None:
                    self.bias.copy_(bias)

    def _outputs_first(self, weight: Tensor) -> Tensor:
        """Return a view of the weight as [out_features, in_features, ...], on which torch.nn's layers compute fans."""
        return weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule!r}"


class _Conv(Initialised):
    #: The convolution of torch.nn.functional.
    function: ClassVar[Callable[..., Tensor]]
    # Set by torch.nn's constructors.
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    padding_mode: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rule: str | rules.Rule = "bp",
        feedback_init: str = "default",
        num_classes: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_rule(rule, feedback_init, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
        if isinstance(stride, str):
            raise InputError(f"stride: expected integers, got {stride!r}")
        geometry = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, padding_mode, device, dtype)
        self._set_up(rule, feedback_init, num_classes, seed, generator)

    def forward(self, input: Tensor) -> Tensor:
        """Compute [N, C_out, *positions] from [N, C_in, *positions]; the batch dimension is optional."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        # Read once: a parametrisation computes it, and may advance a power iteration.
        return self._forward(input, self.weight)

    def _forward(self, input: Tensor, weight: Tensor) -> Tensor:
        if not self._is_direct(input) and (backend := ops.can_swap(input, weight, self.groups)):
            padded, padding = pad(self, input)
            coupled = self.coupled(weight)
            output = self.function(padded, coupled, self.bias, self.stride, padding, self.dilation, self.groups)
            shape = Window(self.stride, padding, self.dilation, self.groups)
            arguments = ops.ConvArguments(self.pass_feedback(weight), shape, backend)
            return ops.with_feedback(output, padded, coupled, arguments)
        dims = weight.dim() - 2
        if input.dim() == dims + 1:
            return self._forward(input.unsqueeze(0), weight).squeeze(0)
        if input.dim() != dims + 2:
            raise ShapeError(
                f"input: expected {dims + 2} dimensions [N, C, *positions] or {dims + 1} without the batch, "
                f"got shape {list(input.shape)}"
            )
        input, padding = pad(self, input)
        geometry: Geometry = {
            "stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups
        }  # fmt: skip
        return self._convolve(input, weight, self.bias, **geometry)


class Conv1d(_Conv, nn.Conv1d):
    __doc__ = "``torch.nn.Conv1d`` with a learning rule: its arguments, and\n" + FEEDBACK_ARGUMENTS
    function = staticmethod(F.conv1d)


class Conv2d(_Conv, nn.Conv2d):
    __doc__ = "``torch.nn.Conv2d`` with a learning rule: its arguments, and\n" + FEEDBACK_ARGUMENTS
    function = staticmethod(F.conv2d)


class Conv3d(_Conv, nn.Conv3d):
    __doc__ = "``torch.nn.Conv3d`` with a learning rule: its arguments, and\n" + FEEDBACK_ARGUMENTS
    function = staticmethod(F.conv3d)


class Linear(Initialised, nn.Linear):
    __doc__ = "``torch.nn.Linear`` with a learning rule: its arguments, and\n" + FEEDBACK_ARGUMENTS

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rule: str | rules.Rule = "bp",
        feedback_init: str = "default",
        num_classes: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_rule(rule, feedback_init, bias=bias, device=device, dtype=dtype)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(rule, feedback_init, num_classes, seed, generator)

    def forward(self, input: Tensor) -> Tensor:
        """Compute [..., out_features] from [..., in_features]."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        return self._project(input, self.weight, self.bias)
