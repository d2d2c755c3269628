"""Numbers of operations of the feedback ops, equal to those of torch.nn's layers."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from bionas_fast import operation_counts
from bionas_fast.ops.feedback import conv_transpose, direct, torch_library  # noqa: F401 - define the ops counted here


def _conv(input: Tensor, weight: Tensor, *_: Any, out_val: Tensor) -> int:
    return operation_counts.convolution(input, weight, out_val)


def _conv_backward(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any, out_val: Any) -> int:
    return operation_counts.convolution_backward(grad, input, weight, rest[-1])


def _transpose(input: Tensor, weight: Tensor, *_: Any, out_val: Tensor) -> int:
    return operation_counts.convolution(input, weight, out_val, transposed=True)


def _transpose_backward(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any, out_val: Any) -> int:
    return operation_counts.convolution_backward(grad, input, weight, rest[-1], transposed=True)


def _linear(input: Tensor, weight: Tensor, *_: Any, out_val: Tensor) -> int:
    return 2 * prod(input.shape[:-1]) * prod(weight.shape)


def _linear_backward(grad: Tensor, input: Tensor, weight: Tensor, *rest: Any, out_val: Any) -> int:
    return sum(rest[-1][:2]) * _linear(input, weight, out_val=grad)


def _direct_conv_backward(
    error: Tensor, feedback: Tensor, input_shape: list[int], output_size: list[int], *_: Any, out_val: Tensor
) -> int:
    # B is spread over the positions once, by a transposed convolution; one matrix product serves all images.
    spread = 2 * prod(feedback.shape) * prod(output_size)
    return spread + 2 * len(error) * feedback.shape[0] * prod(input_shape[1:])


def _direct_linear_backward(error: Tensor, feedback: Tensor, *_: Any, out_val: Tensor) -> int:
    return _linear(error, feedback, out_val=out_val)


def _formulas() -> dict[Any, operation_counts.Formula]:
    ops = torch.ops.bionas_fast
    return {
        ops.feedback_conv: _conv,
        ops.feedback_conv_backward: _conv_backward,
        ops.feedback_conv_transpose: _transpose,
        ops.feedback_conv_transpose_backward: _transpose_backward,
        ops.feedback_linear: _linear,
        ops.feedback_linear_backward: _linear_backward,
        ops.direct_conv_backward: _direct_conv_backward,
        ops.direct_linear_backward: _direct_linear_backward,
    }


operation_counts.declare(_formulas)
operation_counts.declare_traced("bionas_fast::feedback_conv", "conv")
operation_counts.declare_traced("bionas_fast::feedback_conv_transpose", "conv", transposed=True)
operation_counts.declare_traced("bionas_fast::feedback_linear", "linear")
operation_counts.declare_traced("bionas_fast::direct_conv", "")
operation_counts.declare_traced("bionas_fast::direct_linear", "")
