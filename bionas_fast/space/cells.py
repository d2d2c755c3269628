"""What a supernet and a found network have in common: stem, a chain of cells with their preprocessing, head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bionas_fast.errors import InputError
from bionas_fast.nn import Linear
from bionas_fast.space.operations import FactorizedReduce, ReLUConvBN, ResidualReduction, convolution
from bionas_fast.space.skeleton import REDUCTIONS, RESIDUAL, Skeleton


class PreprocessedCell(nn.Module):
    """A cell that first brings its inputs to its own number of channels and size, where its skeleton says so.

    Args:
        in_channels: of the cell's inputs, the older first.
        channels: C of this cell.
        reduction: whether its edges from the inputs have stride 2.
        previous_reduction: whether the previous cell halved the size, so that the older input must be halved too.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        in_channels: Sequence[int],
        channels: int,
        reduction: bool,
        previous_reduction: bool,
        rule: str,
        affine: bool,
    ) -> None:
        super().__init__()
        self.kind = skeleton.kinds[int(reduction)]
        self.inputs = len(skeleton.input_names)
        self.strides = [2 if reduction else 1] * self.inputs  # of the edges that leave the inputs
        if skeleton.preprocessed:
            for i, width in enumerate(in_channels):
                halved = previous_reduction and i < self.inputs - 1
                module = (FactorizedReduce if halved else ReLUConvBN)(width, channels, rule, affine)
                self.add_module(f"preprocess{i}", module)
        self.out_channels = channels  # of the whole cell; set by the subclass

    def stride(self, source: int) -> int:
        """The stride of the edges that leave a state."""
        return self.strides[source] if source < self.inputs else 1

    @property
    def preprocessing(self) -> list[nn.Module]:
        """What each input passes; empty where it is taken as it is."""
        return [module for name, module in self.named_children() if name.startswith("preprocess")]

    def first_states(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs [N, C_in, H, W], in the cell's own channels and size."""
        modules = self.preprocessing
        return [module(x) for module, x in zip(modules, inputs, strict=True)] if modules else list(inputs)


class CellNetwork(nn.Module):
    """Stem (3×3 convolution, BN), the skeleton's cells, global average pooling, classifier. Subclasses run the cells.

    Args:
        skeleton: which cells follow each other; those that halve the size double C.
        make_cell: called with the arguments of :class:`PreprocessedCell` after the skeleton.
        channels: C of the first cell, ≥ 1.
        cells: ≥ 1; what it counts is the skeleton's.
        fixed: the rules of stem, preprocess and head.

    Raises:
        InputError: a number below 1.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        make_cell: Callable[[tuple[int, ...], int, bool, bool, str, bool], PreprocessedCell],
        *,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int,
        fixed: Mapping[str, str],
        affine: bool,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "cells": cells, "num_classes": num_classes, "in_channels": in_channels}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.skeleton = skeleton
        stem_channels = skeleton.stem * channels
        self.stem = nn.Sequential(
            convolution(in_channels, stem_channels, 3, fixed["stem"], padding=1),
            nn.BatchNorm2d(stem_channels),
        )
        self.cells = nn.ModuleList()
        widths, previous_reduction = (stem_channels,) * len(skeleton.input_names), False
        for kind in skeleton.sequence(cells):
            reduction = kind in REDUCTIONS
            channels *= 2 if reduction else 1
            cell: PreprocessedCell | ResidualReduction
            if kind == RESIDUAL:
                cell = ResidualReduction(widths[-1], channels, fixed["preprocess"], affine)
            else:
                cell = make_cell(widths, channels, reduction, previous_reduction, fixed["preprocess"], affine)
            self.cells.append(cell)
            widths, previous_reduction = (*widths[1:], cell.out_channels), reduction
        self.final = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU()) if skeleton.final_norm else nn.Identity()
        self.classifier = Linear(widths[-1], num_classes, rule=fixed["head"])

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"x: expected images [N, {self.in_channels}, H, W], got shape {list(x.shape)}")

    def _outputs(self, x: Tensor, run: Callable[[Any, tuple[Tensor, ...]], Tensor]) -> Iterator[Tensor]:
        """What each cell makes of the images, one after the other; ``run(cell, inputs)`` runs a searched one."""
        last = (self.stem(x),) * len(self.skeleton.input_names)
        for cell in self.cells:
            out = run(cell, last) if isinstance(cell, PreprocessedCell) else cell(*last)
            last = (*last[1:], out)
            yield out

    def _features(self, x: Tensor, run: Callable[[Any, tuple[Tensor, ...]], Tensor]) -> Tensor:
        """What the last cell makes of them."""
        for out in self._outputs(x, run):  # noqa: B007 one after the other, so that none is kept
            pass
        return out

    def _classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.final(features).mean(dim=(2, 3)))
