"""The common part of supernets and genotype networks: stem, preprocessing and chain of cells, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn
from torch.fx import Proxy

from bionas_fast.choices import Initialisation, Stem
from bionas_fast.errors import InputError, expect_count, unknown
from bionas_fast.nn import Linear
from bionas_fast.space.operations import (
    FactorizedReduce,
    ReLUConvBN,
    ResidualReduction,
    convolution,
    initialised,
)
from bionas_fast.space.skeleton import REDUCTIONS, RESIDUAL, Skeleton


@dataclass(frozen=True)
class CellShape:
    """The shape of one cell.

    Attributes:
        in_channels: channels of its inputs, the older input first.
        channels: C of this cell.
        reduction: whether its edges from the inputs have stride 2.
        previous_reduction: whether the previous cell halved the size, so that the older input must also be halved.
        rule: the learning rule of its preprocessing.
        affine: whether its preprocessing's batch normalisation has affine parameters.
    """

    in_channels: tuple[int, ...]
    channels: int
    reduction: bool
    previous_reduction: bool
    rule: str
    affine: bool


@dataclass(frozen=True)
class NetworkShape:
    """The shape of a network of cells.

    Attributes:
        channels: C of the first cell, ≥ 1; cells that halve the size double it.
        cells: ≥ 1; counted as the skeleton defines.
        num_classes: number of logits, ≥ 1.
        in_channels: channels of the images, ≥ 1.
        fixed: the rules of stem, preprocess and head.
        affine: whether batch normalisation in and between the cells has affine parameters.
        stem: the layers before the cells: ``cifar``, one convolution; ``imagenet``, three of stride 2 (DARTS skeleton
            only).
        initialisation: the law of initial weights; see :func:`bionas_fast.space.operations.initialised`.

    Raises:
        InputError: a number below 1; an unknown stem or law.
    """

    channels: int
    cells: int
    num_classes: int
    in_channels: int
    fixed: Mapping[str, str]
    affine: bool
    stem: Stem = "cifar"
    initialisation: Initialisation = "xavier"

    def __post_init__(self) -> None:
        for name in ("channels", "cells", "num_classes", "in_channels"):
            expect_count(name, getattr(self, name))
        if self.stem not in get_args(Stem):
            raise unknown("stem", self.stem, get_args(Stem))
        if self.initialisation not in get_args(Initialisation):
            raise unknown("initialisation", self.initialisation, get_args(Initialisation))


class PreprocessedCell(nn.Module):
    """A cell that first maps its inputs to its own channels and size, if the skeleton requires it.

    Attributes:
        kind: the kind of cell, the key of its architecture.
        out_channels: channels of the output; set by the subclass.
    """

    kind: str
    out_channels: int

    def __init__(self, skeleton: Skeleton, shape: CellShape) -> None:
        super().__init__()
        self.shape = shape
        self.kind = skeleton.kinds[int(shape.reduction)]
        self.inputs = len(skeleton.input_names)
        self.input_stride = 2 if shape.reduction else 1
        if skeleton.preprocessed:
            for i, width in enumerate(shape.in_channels):
                halved = shape.previous_reduction and i < self.inputs - 1
                module = (FactorizedReduce if halved else ReLUConvBN)(width, shape.channels, shape.rule, shape.affine)
                self.add_module(f"preprocess{i}", module)
        self.out_channels = shape.channels

    def stride(self, source: int) -> int:
        """Return the stride of the edges from a state."""
        return self.input_stride if source < self.inputs else 1

    @property
    def preprocessing(self) -> list[nn.Module]:
        """The preprocessing module of each input; empty if the inputs are used directly."""
        return [module for name, module in self.named_children() if name.startswith("preprocess")]

    def preprocess(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Map the inputs [N, C_in, H, W] to the channels and size of the cell; they are its first states."""
        modules = self.preprocessing
        return [module(x) for module, x in zip(modules, inputs, strict=True)] if modules else list(inputs)


class ImageNetStem(nn.ModuleList):
    """DARTS's layers before the cells for images of ImageNet's size: three 3×3 convolutions of stride 2.

    [N, C_in, H, W] → the inputs of the first cell: [N, C, ⌈H/4⌉, ⌈W/4⌉] and [N, C, ⌈H/8⌉, ⌈W/8⌉].
    """

    def __init__(self, in_channels: int, channels: int, rule: str) -> None:
        narrow = max(1, channels // 2)
        super().__init__(
            [
                nn.Sequential(
                    convolution(in_channels, narrow, 3, rule, stride=2, padding=1),
                    nn.BatchNorm2d(narrow),
                    ReLUConvBN(narrow, channels, rule, True, 3, stride=2),
                ),
                ReLUConvBN(channels, channels, rule, True, 3, stride=2),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self[0](x)
        return [first, self[1](first)]


class CellNetwork(nn.Module):
    """Stem, the skeleton's cells, global average pooling, classifier.

    A subclass's ``forward`` passes the images through :meth:`_begin`, the ``cells`` and :meth:`_classify`.

    Args:
        skeleton: the sequence of the cells.
        shape: the shape of the network.
        make_cell: builds a searched cell from its shape.

    Raises:
        InputError: ImageNet's stem with a skeleton whose cells have one input.
    """

    stem: nn.Sequential | ImageNetStem

    def __init__(
        self, skeleton: Skeleton, shape: NetworkShape, make_cell: Callable[[CellShape], PreprocessedCell]
    ) -> None:
        super().__init__()
        self.skeleton, self.shape = skeleton, shape
        with initialised(shape.initialisation):
            self._add_layers(make_cell)

    def _add_layers(self, make_cell: Callable[[CellShape], PreprocessedCell]) -> None:
        skeleton, shape = self.skeleton, self.shape
        self.in_channels, self.num_classes = shape.in_channels, shape.num_classes
        channels, fixed = shape.channels, shape.fixed
        previous_reduction = shape.stem == "imagenet"
        if shape.stem == "imagenet":
            if len(skeleton.input_names) != 2:
                raise InputError("stem: 'imagenet' gives two inputs of different size; cells of this genotype have one")
            stem_channels = channels
            self.stem = ImageNetStem(shape.in_channels, channels, fixed["stem"])
        else:
            stem_channels = skeleton.stem * channels
            self.stem = nn.Sequential(
                convolution(shape.in_channels, stem_channels, 3, fixed["stem"], padding=1),
                nn.BatchNorm2d(stem_channels),
            )
        self.cells = nn.ModuleList()
        widths = (stem_channels,) * len(skeleton.input_names)
        for kind in skeleton.sequence(shape.cells):
            reduction = kind in REDUCTIONS
            channels *= 2 if reduction else 1
            cell: PreprocessedCell | ResidualReduction
            if kind == RESIDUAL:
                cell = ResidualReduction(widths[-1], channels, fixed["preprocess"], shape.affine)
            else:
                cell = make_cell(
                    CellShape(widths, channels, reduction, previous_reduction, fixed["preprocess"], shape.affine)
                )
            self.cells.append(cell)
            widths = (*widths[1:], cell.out_channels)
            previous_reduction = reduction
        self.final = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU()) if skeleton.final_norm else nn.Identity()
        self.classifier = Linear(widths[-1], shape.num_classes, rule=fixed["head"])

    def _begin(self, x: Tensor) -> list[Tensor]:
        """Compute the inputs of the first cell from images [N, in_channels, H, W].

        Raises:
            InputError: the images have another shape.
        """
        if not isinstance(x, Proxy) and (x.dim() != 4 or x.shape[1] != self.in_channels):
            raise InputError(f"x: expected images [N, {self.in_channels}, H, W], got shape {list(x.shape)}")
        out = self.stem(x)
        return out if isinstance(out, list) else [out] * len(self.skeleton.input_names)

    def _classify(self, features: Tensor) -> Tensor:
        """Compute the logits [N, classes] from the output of the last cell, [N, C, H, W]."""
        return self.classifier(self.final(features).mean(dim=(2, 3)))
