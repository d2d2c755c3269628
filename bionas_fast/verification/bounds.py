"""Bounds of the errors of kernels, derived from the number of roundings, and the comparison with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bionas_fast.runtime.arithmetic import precision
from bionas_fast.verification.check import Expected, Target, magnitudes, tensors

#: A random error of n roundings stays below this number times √n units, except with a probability of 2·exp(−32)
#: (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 2019).
DEVIATIONS = 8.0
#: Units of rounding; that of TF32 is of factors, which tensor cores may truncate, that of the others of stored numbers.
UNITS = {
    "float32": 2.0**-24,
    "tf32": 2.0**-10,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}


def rounding(target: Target, terms: int, stored: int = 1) -> float:
    """Bound the error of a sum relative to the sum of the magnitudes of its terms.

    Args:
        terms: the number of terms of nested sums in float32, in any order.
        stored: the number of times that a number is rounded to the dtype on the way; with TF32, factors are.
    """
    return stored * UNITS[target.dtype] + min(terms, DEVIATIONS * math.sqrt(terms)) * UNITS["float32"]


def compare(found: Sequence[Tensor], expected: Expected) -> tuple[float, float, str]:
    """Compare results with the right ones.

    Returns:
        The largest error relative to its scale and its bound, of the tensor that comes closest to it; and the reason
        of a failure, empty if there is none.
    """
    worst, reason = (0.0, min(expected.bounds, default=0.0)), ""
    if len(found) != len(expected.values):
        return math.inf, worst[1], f"{len(found)} results, expected {len(expected.values)}"
    for number, (ours, right, scale, bound) in enumerate(
        zip(found, expected.values, expected.scales, expected.bounds, strict=True)
    ):
        if ours.shape != right.shape:
            return math.inf, bound, f"result {number}: shape {list(ours.shape)}, expected {list(right.shape)}"
        if not right.numel():
            continue
        # Below the smallest normal number, the unit of rounding is that of this number.
        errors = (ours.double() - right).abs() / scale.clamp_min(torch.finfo(ours.dtype).tiny)
        error = float(errors.nan_to_num(math.inf, math.inf).max())
        if error / max(bound, 1e-300) > worst[0] / max(worst[1], 1e-300) or number == 0:
            worst = (error, bound)
        if not error <= bound and not reason:
            at = int(errors.nan_to_num(math.inf, math.inf).argmax())
            values = f"{float(ours.flatten()[at]):.6g}, expected {float(right.flatten()[at]):.6g}"
            reason = f"result {number}, element {at}: {values}"
    return *worst, reason


def elementwise(
    target: Target, exact: Callable[..., Any], arguments: tuple[Any, ...], terms: int, stored: int = 1
) -> Expected:
    """Compute the results of a function in float64, and their scales as its results for the arguments' magnitudes.

    That holds for functions that are sums of products of their arguments.
    """
    values, scales = list(tensors(exact(*arguments))), list(tensors(exact(*magnitudes(arguments))))
    return Expected(values, scales, [rounding(target, terms, stored)] * len(values))


def as_precise_as(
    target: Target, exact: Callable[..., Any], arguments: tuple[Any, ...], narrow: tuple[Any, ...], terms: int
) -> Expected:
    """Compute the results of a function in float64; the bounds follow from plain PyTorch's errors.

    For functions with batch normalisation, whose errors depend on the data: the largest error of a tensor, relative to
    its largest entry, may be four times that of plain PyTorch in the same dtype, or that of a sum.

    Args:
        exact: the reference.
        arguments: in float64.
        narrow: the same arguments in the dtype of the kernel.
    """
    values = list(tensors(exact(*arguments)))
    with precision(target.products):
        plain = list(tensors(exact(*narrow)))
    scales, bounds = [], []
    for right, other in zip(values, plain, strict=True):
        largest = right.abs().max() if right.numel() else right.new_zeros(())
        scales.append(largest)
        error = float((other.double() - right).abs().max() / largest.clamp_min(1e-300)) if right.numel() else 0.0
        bounds.append(max(4 * error, rounding(target, terms)))
    return Expected(values, scales, bounds)
