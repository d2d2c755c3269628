"""The common part of supernets and genotype networks: stem, preprocessing and chain of cells, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import Proxy

from bionas_fast.errors import InputError
from bionas_fast.nn import Linear
from bionas_fast.space.operations import FactorizedReduce, ReLUConvBN, ResidualReduction, convolution
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

    Raises:
        InputError: a number below 1.
    """

    channels: int
    cells: int
    num_classes: int
    in_channels: int
    fixed: Mapping[str, str]
    affine: bool

    def __post_init__(self) -> None:
        for name in ("channels", "cells", "num_classes", "in_channels"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")


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


class CellNetwork(nn.Module):
    """Stem (3×3 convolution, BN), the skeleton's cells, global average pooling, classifier.

    A subclass's ``forward`` passes the images through :meth:`_begin`, the ``cells`` and :meth:`_classify`.

    Args:
        skeleton: the sequence of the cells.
        shape: the shape of the network.
        make_cell: builds a searched cell from its shape.
    """

    def __init__(
        self, skeleton: Skeleton, shape: NetworkShape, make_cell: Callable[[CellShape], PreprocessedCell]
    ) -> None:
        super().__init__()
        self.skeleton, self.shape = skeleton, shape
        self.in_channels, self.num_classes = shape.in_channels, shape.num_classes
        channels, fixed = shape.channels, shape.fixed
        stem_channels = skeleton.stem * channels
        self.stem = nn.Sequential(
            convolution(shape.in_channels, stem_channels, 3, fixed["stem"], padding=1),
            nn.BatchNorm2d(stem_channels),
        )
        self.cells = nn.ModuleList()
        widths = (stem_channels,) * len(skeleton.input_names)
        previous_reduction = False
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
        return [self.stem(x)] * len(self.skeleton.input_names)

    def _classify(self, features: Tensor) -> Tensor:
        """Compute the logits [N, classes] from the output of the last cell, [N, C, H, W]."""
        return self.classifier(self.final(features).mean(dim=(2, 3)))
