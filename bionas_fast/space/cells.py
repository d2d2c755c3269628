"""What a supernet and a found network have in common: stem, a chain of cells with their preprocessing, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from bionas_fast.errors import InputError
from bionas_fast.nn import Linear
from bionas_fast.space.operations import FactorizedReduce, ReLUConvBN, convolution

STEM_MULTIPLIER = 3


class PreprocessedCell(nn.Module):
    """A cell that first brings its two inputs to its own number of channels and size.

    Args:
        in_channels: of the outputs of the cell before the previous one, and of the previous one.
        channels: C of this cell.
        reduction: whether its edges from the inputs have stride 2.
        previous_reduction: whether the previous cell halved the size, so that the older input must be halved too.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int,
        reduction: bool,
        previous_reduction: bool,
        rule: str,
        affine: bool,
    ) -> None:
        super().__init__()
        self.kind = "reduce" if reduction else "normal"
        older = FactorizedReduce if previous_reduction else ReLUConvBN
        self.preprocess0 = older(in_channels[0], channels, rule, affine)
        self.preprocess1 = ReLUConvBN(in_channels[1], channels, rule, affine)
        self.out_channels = channels  # of the whole cell; set by the subclass


class CellNetwork(nn.Module):
    """Stem (3×3 convolution to 3C, BN), cells, global average pooling, classifier (DARTS, section 3).

    Reductions stand at ⌊L/3⌋ and ⌊2L/3⌋ and double C. Subclasses run the cells.

    Args:
        make_cell: called with the arguments of :class:`PreprocessedCell`.
        channels: C of the first cell, ≥ 1.
        cells: L, ≥ 1.
        fixed: the rules of stem, preprocess and head.

    Raises:
        InputError: a number below 1.
    """

    def __init__(
        self,
        make_cell: Callable[[tuple[int, int], int, bool, bool, str, bool], PreprocessedCell],
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
        stem_channels = STEM_MULTIPLIER * channels
        self.stem = nn.Sequential(
            convolution(in_channels, stem_channels, 3, fixed["stem"], padding=1),
            nn.BatchNorm2d(stem_channels),
        )
        self.cells = nn.ModuleList()
        widths, previous_reduction = (stem_channels, stem_channels), False
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            cell = make_cell(widths, channels, reduction, previous_reduction, fixed["preprocess"], affine)
            self.cells.append(cell)
            widths, previous_reduction = (widths[1], cell.out_channels), reduction
        self.classifier = Linear(widths[1], num_classes, rule=fixed["head"])

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"x: expected images [N, {self.in_channels}, H, W], got shape {list(x.shape)}")

    def _classify(self, features: Tensor) -> Tensor:
        return self.classifier(features.mean(dim=(2, 3)))
