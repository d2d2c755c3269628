"""LazyConv1d-3d, LazyConvTranspose1d-3d and LazyLinear: torch.nn's lazy layers, with a learning rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bionas_fast import rules
from bionas_fast.nn.layers import FEEDBACK_ARGUMENTS, Conv1d, Conv2d, Conv3d, Initialised, Linear, check_rule
from bionas_fast.nn.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

_DOC = "``torch.nn.{}`` with a learning rule; feedback is drawn with the weights. Its arguments, and\n"


class Lazy(Initialised):
    """Drawing of weights and feedback at the first forward pass, or of feedback when a checkpoint is loaded."""

    # Of torch.nn's LazyModuleMixin.
    has_uninitialized_params: Any
    _lazy_load_hook: Any

    def reset_parameters(self) -> None:
        """Redraw weights and feedback, if the shape is known."""
        if "_deferred" in self.__dict__ and not self.has_uninitialized_params():
            self.reset_weight(self._deferred["generator"])
            self._draw_deferred()

    def reset_weight(self, generator: torch.Generator | None, init: str | None = None) -> None:
        """Redraw weights and bias, if the shape is known, by the distribution chosen before."""
        if "_deferred" in self.__dict__ and not self.has_uninitialized_params():
            super().reset_weight(generator, self._deferred["init"] if init is None else init)

    def defer_weight(self, init: str, generator: torch.Generator | None) -> None:
        """Choose distribution and generator of the weights that will be drawn."""
        self._deferred.update(init=init, generator=generator)

    def _draw_deferred(self) -> None:
        direct, deferred = self.direct, self._deferred
        arguments = {name: deferred[name] for name in ("num_classes", "seed", "generator")}
        self.set_rule(self.rule, feedback_init=self.feedback_init, **arguments)
        self.direct = direct

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        unknown = self.has_uninitialized_params()
        self._lazy_load_hook(state_dict, prefix, *arguments)
        if unknown and not self.has_uninitialized_params():
            self._draw_deferred()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _infer_parameters(self, module: Any, args: Any, kwargs: Any = None) -> None:
        super()._infer_parameters(module, args, kwargs)  # type: ignore[misc]
        self.__dict__.pop("_deferred", None)


class _LazyConv(Lazy):
    def __init__(
        self,
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
        geometry = (kernel_size, stride, padding, dilation, groups)
        super().__init__(out_channels, *geometry, bias, padding_mode, device, dtype)
        self._set_up(rule, feedback_init, num_classes, seed, generator)


class LazyConv1d(_LazyConv, nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    __doc__ = _DOC.format("LazyConv1d") + FEEDBACK_ARGUMENTS
    cls_to_become = Conv1d


class LazyConv2d(_LazyConv, nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    __doc__ = _DOC.format("LazyConv2d") + FEEDBACK_ARGUMENTS
    cls_to_become = Conv2d


class LazyConv3d(_LazyConv, nn.LazyConv3d, Conv3d):  # type: ignore[misc]
    __doc__ = _DOC.format("LazyConv3d") + FEEDBACK_ARGUMENTS
    cls_to_become = Conv3d


class _LazyConvTranspose(Lazy):
    def __init__(
        self,
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
        super().__init__(out_channels, *geometry, bias, dilation, padding_mode, device, dtype)
        self._set_up(rule, feedback_init, num_classes, seed, generator)


class LazyConvTranspose1d(_LazyConvTranspose, nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    __doc__ = _DOC.format("LazyConvTranspose1d") + FEEDBACK_ARGUMENTS
    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyConvTranspose, nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    __doc__ = _DOC.format("LazyConvTranspose2d") + FEEDBACK_ARGUMENTS
    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyConvTranspose, nn.LazyConvTranspose3d, ConvTranspose3d):  # type: ignore[misc]
    __doc__ = _DOC.format("LazyConvTranspose3d") + FEEDBACK_ARGUMENTS
    cls_to_become = ConvTranspose3d


class LazyLinear(Lazy, nn.LazyLinear, Linear):  # type: ignore[misc]
    __doc__ = _DOC.format("LazyLinear") + FEEDBACK_ARGUMENTS
    cls_to_become = Linear

    def __init__(
        self,
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
        super().__init__(out_features, bias, device, dtype)
        self._set_up(rule, feedback_init, num_classes, seed, generator)
