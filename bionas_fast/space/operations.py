"""The operations of the cells, and the fixed layers of networks (DARTS, Liu et al. 2019; BioNAS, section 3.2).

Every builder returns a module [N, C, H, W] → [N, C, ⌈H/stride⌉, ⌈W/stride⌉]. In a supernet (``searching``) batch
normalisation has no affine parameters and follows the pools; in a genotype network it has affine parameters, and pools
stand alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from bionas_fast.choices import Initialisation
from bionas_fast.nn import Conv2d, FeedbackLayer, HebbianConv2d, PredictiveConv2d
from bionas_fast.nn.leaf import leaf
from bionas_fast.ops.factorized_reduce import rectified_grids
from bionas_fast.rules import Law
from bionas_fast.space.names import register_operation

_initialisation: ContextVar[Initialisation] = ContextVar("initialisation", default="xavier")


@contextmanager
def initialised(law: Initialisation) -> Iterator[None]:
    """Build the convolutions of the block with this law of initial weights."""
    token = _initialisation.set(law)
    try:
        yield
    finally:
        _initialisation.reset(token)


def convolution(
    in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], rule: str | None, **geometry: Any
) -> Conv2d:
    """Build a convolution as in the paper: no bias, Xavier initialisation unless :func:`initialised` says otherwise."""
    rule = rule or "bp"
    xavier = _initialisation.get() == "xavier" or rule != "bp"
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        rule=rule,
        feedback_init="xavier" if xavier else "default",
        bias=False,
        **geometry,
    )


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch normalisation; with kernel size 1 it preprocesses the inputs of a cell."""

    def __init__(
        self, in_channels: int, out_channels: int, rule: str, affine: bool, kernel_size: int = 1, stride: int = 1
    ) -> None:
        super().__init__(
            nn.ReLU(),
            convolution(in_channels, out_channels, kernel_size, rule, stride=stride, padding=kernel_size // 2),
            nn.BatchNorm2d(out_channels, affine=affine),
        )


class ResidualReduction(nn.Module):
    """Residual block between two stages of NAS-Bench-201: a basic block (He et al. 2016) of stride 2, ReLU first.

    [N, C_in, H, W] → [N, C_out, ⌈H/2⌉, ⌈W/2⌉]: two (ReLU, 3×3 convolution, BN), the first of stride 2, added to average
    pooling and a 1×1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, rule: str, affine: bool) -> None:
        super().__init__()
        self.conv1 = ReLUConvBN(in_channels, out_channels, rule, affine, 3, stride=2)
        self.conv2 = ReLUConvBN(out_channels, out_channels, rule, affine, 3)
        pool = nn.AvgPool2d(2, 2, ceil_mode=True)  # for odd sizes, the last row is averaged alone
        self.shortcut = nn.Sequential(pool, convolution(in_channels, out_channels, 1, rule))
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + self.shortcut(x)


class FactorizedReduce(nn.Module):
    """ReLU, two 1×1 convolutions of stride 2, the second on the input shifted by a pixel, concatenated, BN.

    [N, C_in, H, W] → [N, C_out, ⌈H/2⌉, ⌈W/2⌉]. For odd sizes, the shifted input is zero-padded. The input is subsampled
    before the ReLU, so no unused position is computed.
    """

    def __init__(self, in_channels: int, out_channels: int, rule: str, affine: bool) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels - out_channels // 2, 1, rule)
        self.conv2 = convolution(in_channels, out_channels // 2, 1, rule) if out_channels > 1 else None
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv2 is None:
            return self.bn(self.conv1(F.relu(x[:, :, ::2, ::2])))
        first, second = rectified_grids(x)
        return self.bn(torch.cat([self.conv1(first), self.conv2(second)], dim=1))


class Zero(nn.Module):
    """The candidate ``none``: no connection."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0


class Skip(FeedbackLayer):
    """An identity with a learning rule: a depthwise 1×1 convolution with frozen unit weights.

    The error passes unchanged under ``bp`` and ``usf``; ``brsf`` and ``frsf`` scale each channel by a random magnitude
    of mean 1, redrawn every batch or fixed.
    """

    def __init__(self, channels: int, rule: str) -> None:
        super().__init__()
        self.groups = channels
        self.register_buffer("weight", torch.ones(channels, 1, 1, 1), persistent=False)
        self.set_rule(rule)

    def _initial_law(self) -> Law:
        return Law(bound=2.0, scale=1.0)

    def to_torch(self) -> nn.Module:
        """Return the identity."""
        return nn.Identity().train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return leaf(self, x)
        return self._convolve(x, self.weight, None, groups=self.groups)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, rule={self.rule!r}"


class SeparableStage(nn.Sequential):
    """ReLU, depthwise k×k, pointwise 1×1, batch normalisation: the building block of sep_conv and dil_conv."""

    def __init__(self, channels: int, kernel_size: int, stride: int, dilation: int, rule: str, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            convolution(
                channels,
                channels,
                kernel_size,
                rule,
                stride=stride,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                groups=channels,
            ),
            convolution(channels, channels, 1, rule),
            nn.BatchNorm2d(channels, affine=affine),
        )

    @property
    def depthwise(self) -> Conv2d:
        """The depthwise k×k convolution."""
        return cast("Conv2d", self[1])

    @property
    def pointwise(self) -> Conv2d:
        """The pointwise 1×1 convolution."""
        return cast("Conv2d", self[2])

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch normalisation."""
        return cast("nn.BatchNorm2d", self[3])


def _register_separable(kernel_size: int) -> None:
    @register_operation(f"sep_conv_{kernel_size}x{kernel_size}")
    def sep_conv(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
        assert rule is not None
        return nn.Sequential(
            SeparableStage(channels, kernel_size, stride, 1, rule, not searching),
            SeparableStage(channels, kernel_size, 1, 1, rule, not searching),
        )

    @register_operation(f"dil_conv_{kernel_size}x{kernel_size}")
    def dil_conv(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
        assert rule is not None
        return SeparableStage(channels, kernel_size, stride, 2, rule, not searching)


def _register_dense(kernel_size: int) -> None:
    @register_operation(f"nor_conv_{kernel_size}x{kernel_size}")
    def nor_conv(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
        assert rule is not None
        return ReLUConvBN(channels, channels, rule, not searching, kernel_size, stride)


@register_operation("conv_7x1_1x7")
def _factorised_conv(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    """Build ReLU, a 1×7 and a 7×1 convolution, BN (NASNet, Zoph et al. 2018)."""
    return nn.Sequential(
        nn.ReLU(),
        convolution(channels, channels, (1, 7), rule, stride=(1, stride), padding=(0, 3)),
        convolution(channels, channels, (7, 1), rule, stride=(stride, 1), padding=(3, 0)),
        nn.BatchNorm2d(channels, affine=not searching),
    )


@register_operation("none", takes_rule=False)
def _none(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    return Zero(stride)


@register_operation("max_pool_3x3", takes_rule=False)
def _max_pool(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    pool = nn.MaxPool2d(3, stride, padding=1)
    return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False)) if searching else pool


@register_operation("avg_pool_3x3", takes_rule=False)
def _avg_pool(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False)) if searching else pool


@register_operation("skip_connect")
def _skip_connect(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    assert rule is not None
    return Skip(channels, rule) if stride == 1 else FactorizedReduce(channels, channels, rule, not searching)


@register_operation("hebbian_conv_3x3", own_rule="hebbian")
def _hebbian_conv(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    # With competition and decay; under the published rule all filters converge to the same one.
    layer = HebbianConv2d(channels, channels, 3, stride, 1, rule="softhebb", rate=0.05, normalisation="unit", norm=1.0)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(channels, affine=not searching))


@register_operation("predictive_conv_3x3", own_rule="predictive coding")
def _predictive_conv(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    layer = PredictiveConv2d(channels, channels, 3, stride, 1)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(channels, affine=not searching))


@register_operation("local_predictive_conv_3x3", own_rule="local predictive coding")
def _local_predictive_conv(channels: int, stride: int, rule: str | None, searching: bool) -> nn.Module:
    layer = PredictiveConv2d(channels, channels, 3, stride, 1, credit="local")
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(channels, affine=not searching))


for _kernel_size in (3, 5, 7):
    _register_separable(_kernel_size)
for _kernel_size in (1, 3):
    _register_dense(_kernel_size)
