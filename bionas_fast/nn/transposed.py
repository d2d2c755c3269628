"""ConvTranspose1d-3d, and linear layers whose weight is stored transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from bionas_fast import rules
from bionas_fast.errors import ShapeError
from bionas_fast.nn.layers import FEEDBACK_ARGUMENTS, Initialised, check_rule
from bionas_fast.nn.leaf import leaf
from bionas_fast.ops import feedback as ops
from bionas_fast.ops.geometry import Geometry
from bionas_fast.rules import Law

_DOC = "``torch.nn.{}`` with a learning rule, whose error is the convolution δ_in = B ⋆ δ_out. Its arguments, and\n"


class _ConvTranspose(Initialised):
    # Set by torch.nn's constructors.
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    padding_mode: Any
    _output_padding: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
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
        check_rule(rule, feedback_init, stride=stride, padding=padding, groups=groups, bias=bias, dilation=dilation)
        geometry = (kernel_size, stride, padding, output_padding, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, dilation, padding_mode, device, dtype)
        self._set_up(rule, feedback_init, num_classes, seed, generator)

    def _direct_shape(self, num_classes: int) -> tuple[int, ...]:
        shape = self.effective_weight().shape
        return (num_classes, shape[0], *shape[2:])

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Compute [N, C_out, *positions] from [N, C_in, *positions]; the batch dimension is optional.

        Args:
            input: the input.
            output_size: the size of the output, where the stride leaves several; as in torch.nn.
        """
        if isinstance(input, Proxy):
            return leaf(self, input, output_size)
        weight = self.weight
        dims = weight.dim() - 2
        if input.dim() == dims + 1:
            return self._forward(input.unsqueeze(0), weight, output_size).squeeze(0)
        if input.dim() != dims + 2:
            raise ShapeError(
                f"input: expected {dims + 2} dimensions [N, C, *positions] or {dims + 1} without the batch, "
                f"got shape {list(input.shape)}"
            )
        return self._forward(input, weight, output_size)

    def _forward(self, input: Tensor, weight: Tensor, output_size: Sequence[int] | None) -> Tensor:
        size = None if output_size is None else list(output_size)
        spans = (self.stride, self.padding, self.kernel_size)
        extra = self._output_padding(input, size, *spans, weight.dim() - 2, self.dilation)
        geometry: Geometry = {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups
        }  # fmt: skip
        if not self._is_direct(input):
            feedback = self.pass_feedback(weight)
            weight = self.coupled(weight)
            return ops.feedback_conv_transpose(input, weight, self.bias, feedback, output_padding=extra, **geometry)
        output = ops.feedback_conv_transpose(input.detach(), weight, self.bias, output_padding=extra, **geometry)
        token = ops.direct_conv_transpose(input, self._direct_feedback(), output.shape[2:], **geometry)
        return self._collect(output, token)


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    __doc__ = _DOC.format("ConvTranspose1d") + FEEDBACK_ARGUMENTS


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    __doc__ = _DOC.format("ConvTranspose2d") + FEEDBACK_ARGUMENTS


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    __doc__ = _DOC.format("ConvTranspose3d") + FEEDBACK_ARGUMENTS


class TransposedLinear(Initialised):
    """Linear layer with a learning rule whose weight is [in_features, out_features], as in GPT-2: y = x W + b.

    Args:
        in_features: the size of the last dimension of the input.
        out_features: the same of the output.
        device, dtype: of the parameters.
    """

    filters: ClassVar[int] = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rule: str | rules.Rule = "bp",
        feedback_init: str = "default",
        num_classes: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_rule(rule, feedback_init, device=device, dtype=dtype)
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.nx, self.nf = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features, **place))
        self.bias = nn.Parameter(torch.empty(out_features, **place))
        self._set_up(rule, feedback_init, num_classes, seed, generator)

    def _plain_class(self) -> type[nn.Module]:
        from transformers.pytorch_utils import Conv1D

        return Conv1D

    def _initial_law(self) -> Law:
        return rules.get_law(self.feedback_init, tuple(self.effective_weight().t().shape))

    def _direct_shape(self, num_classes: int) -> tuple[int, ...]:
        return (num_classes, self.effective_weight().shape[0])

    def _outputs_first(self, weight: Tensor) -> Tensor:
        return weight.detach().t()

    def forward(self, input: Tensor) -> Tensor:
        """Compute [..., out_features] from [..., in_features]."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        weight = self.weight
        if self._is_direct(input):
            return self._project(input, weight.t(), self.bias)
        feedback = ops.BACKPROPAGATION
        if torch.is_grad_enabled():
            # Random magnitudes are numbered in the order of the weight's own layout.
            feedback = self.pass_feedback(weight)
            b = ops.feedback_weight(weight, feedback).t()
            feedback = feedback if feedback.mode == "weight" else feedback._replace(mode="stored", stored=b)
        return ops.feedback_linear(input, self.coupled(weight).t(), self.bias, feedback)

    def extra_repr(self) -> str:
        return f"in_features={self.nx}, out_features={self.nf}, rule={self.rule!r}"
