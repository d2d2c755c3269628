"""Feedback weights and backward passes through them in Triton: B is computed in registers from tiles of W.

δ_in of linear maps and 1×1 convolutions is one matrix product, that of depthwise convolutions a sum over taps; neither
writes B to memory. For all other convolutions, :func:`feedback_weight`, an elementwise kernel, computes B for a single
``convolution_backward``. Where B is an existing tensor (modes ``weight`` and ``stored``), and for weight and bias
gradients, PyTorch's routines run. Specified by :mod:`.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ..launching import product_precision
from ..tables import table
from ..window import Window
from . import reference
from .records import COMPUTED, SEGMENT_MODES, Advance, Feedback, FeedbackSegments
from .reference import Grads
from .triton_kernels import (
    DTYPES,
    SEGMENTS_BLOCK,
    TILES,
    WEIGHT_BLOCK,
    configurations,
    depthwise_kernel,
    depthwise_options,
    product_kernel,
    product_options,
    segments_kernel,
    segments_options,
    weight_kernel,
    weight_options,
)

__all__ = [
    "DTYPES",
    "configurations",
    "conv_backward",
    "feedback_segments",
    "feedback_weight",
    "linear_backward",
]

#: Programs of a resident product: several per multiprocessor, but few enough to reuse each B many times.
RESIDENT_PROGRAMS = 512
GRID_LIMIT = 65535  # of CUDA, in the second dimension
ROW_LIMIT, BLOCK_STRIDE_LIMIT = 2**30, 2**24  # of 32-bit counters in the kernels


def is_computed(weight: Tensor, feedback: Feedback) -> bool:
    """Whether a kernel computes B: it is not an existing tensor, and the dtype is supported."""
    return feedback.mode in COMPUTED and weight.dtype in DTYPES


def operands(
    weight: Tensor, feedback: Feedback, layout: torch.memory_format = torch.contiguous_format
) -> dict[str, Tensor | None]:
    """Return weight, stored tensor and stream in this layout; None for those that the mode does not read."""
    stored = feedback.stored if feedback.mode == "stored_sign" else None
    stream = feedback.stream if feedback.mode == "drawn_sign" else None
    return {
        "p_weight": weight.contiguous(memory_format=layout),
        "p_stored": None if stored is None else stored.contiguous(memory_format=layout),
        "p_stream": None if stream is None else stream.contiguous(),
    }


def feedback_weight(weight: Tensor, feedback: Feedback) -> Tensor:
    """Compute B, shaped like ``weight`` and in its dtype."""
    if not is_computed(weight, feedback):
        return reference.feedback_weight(weight, feedback)
    layout = reference.layout(weight)
    channels, taps = (1, 1) if layout == torch.contiguous_format else (weight.shape[1], math.prod(weight.shape[2:]))
    out = torch.empty_like(weight, memory_format=layout)
    if out.numel():
        grid = (triton.cdiv(out.numel(), WEIGHT_BLOCK),)
        with torch.cuda.device_of(out):
            weight_kernel[grid](
                p_out=out, **operands(weight, feedback, layout), elements=out.numel(), channels=channels, taps=taps,
                bound=feedback.bound, scale=feedback.scale, **weight_options(feedback.mode),
            )  # fmt: skip
    return out


def feedback_segments(
    weight: Tensor,
    stored: Tensor | None,
    stream: Tensor | None,
    segments: FeedbackSegments,
    advance: Advance | None = None,
) -> Tensor:
    """Compute B of every segment, flat, in one launch; arguments as in :func:`.reference.feedback_segments`."""
    lengths, modes, bounds, scales = segments
    if weight.dtype not in DTYPES or len(lengths) > GRID_LIMIT or not weight.numel():
        return reference.feedback_segments(weight, stored, stream, segments, advance)
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    codes = [SEGMENT_MODES.index(mode) for mode in modes]
    starts = accumulate(lengths[:-1], initial=0)
    read = [length * mode.startswith("stored") for length, mode in zip(lengths, modes, strict=True)]
    read_starts = accumulate(read[:-1], initial=0)
    places = table((*zip(starts, lengths, codes, read_starts, strict=True),), weight.device)
    numbers = table((*zip(bounds, scales, strict=True),), weight.device, torch.float32)
    # A placeholder of the same dtype for tensors that no segment reads.
    stored = numbers if stored is None else stored
    stream = places if stream is None else stream
    following, steps = advance or (places, places)
    grid = (triton.cdiv(max(lengths), SEGMENTS_BLOCK), len(lengths))
    with torch.cuda.device_of(out):
        segments_kernel[grid](
            p_out=out, p_weight=weight.contiguous(), p_stored=stored.contiguous(), p_stream=stream.contiguous(),
            p_segments=places, p_numbers=numbers, p_next=following, p_steps=steps,
            **segments_options(advance is not None),
        )  # fmt: skip
    return out


def linear_backward(
    grad: Tensor, input: Tensor, weight: Tensor, feedback: Feedback, output_mask: Sequence[bool]
) -> Grads:
    """Compute (δ_in, ∂W, ∂b) of a linear map for δ_out [..., out_features], as selected by ``output_mask``."""
    down, mask = None, list(output_mask)
    rows = math.prod(grad.shape[:-1])
    if mask[0] and is_computed(weight, feedback) and _countable(rows, weight.shape[1]):
        down = torch.empty_like(input, memory_format=torch.contiguous_format)
        _product(down, grad.contiguous(), weight, feedback, (rows, 1))
        mask[0] = False
    b = feedback_weight(weight, feedback) if mask[0] else weight
    others = reference.linear_backward(grad, input, b, mask)
    return (others[0] if mask[0] else down, *others[1:])


def conv_backward(
    grad: Tensor, input: Tensor, weight: Tensor, feedback: Feedback, window: Window, output_mask: Sequence[bool]
) -> Grads:
    """Compute (δ_in, ∂W, ∂b) of a convolution in one to three dimensions, as selected by ``output_mask``."""
    down, mask = None, list(output_mask)
    images, channels, *size = input.shape
    positions = max(math.prod(size), math.prod(grad.shape[2:]))
    countable = weight.dim() == 4 and _countable(images * positions, positions, channels)
    if mask[0] and is_computed(weight, feedback) and countable:
        if window.groups == 1 and weight.shape[2:] == (1, 1) and not any(window.padding):
            down = _pointwise(grad, input, weight, feedback, window)
        elif window.groups == channels == weight.shape[0] <= GRID_LIMIT:
            down = _depthwise(grad, input, weight, feedback, window)
        mask[0] = down is None
    if not any(mask):
        return down, None, None
    b = feedback_weight(weight, feedback) if mask[0] else weight
    others = reference.conv_backward(grad, input, b, window, mask)
    first, own, of_bias = (gradient if wanted else None for gradient, wanted in zip(others, mask, strict=True))
    return first if mask[0] else down, own, of_bias


def _countable(rows: int, *block_strides: int) -> bool:
    return rows < ROW_LIMIT and max(block_strides) < BLOCK_STRIDE_LIMIT


def _product(down: Tensor, up: Tensor, weight: Tensor, feedback: Feedback, split: tuple[int, int]) -> None:
    """Fill ``down`` [images, inputs, positions] from ``up`` [images, outputs, positions], both dense.

    Args:
        split: the numbers of images and positions.
    """
    outputs, inputs = weight.shape[:2]
    images, positions = split
    rows = images * positions
    resident, streamed = TILES[down.dtype.itemsize]
    tile = resident if outputs <= resident.outputs else streamed
    columns = triton.cdiv(inputs, tile.inputs)
    programs = max(1, RESIDENT_PROGRAMS // max(1, columns)) if tile.resident else GRID_LIMIT
    grid = (columns, min(programs, triton.cdiv(rows, tile.rows)))
    if down.numel():
        with torch.cuda.device_of(down):
            product_kernel[grid](
                p_down=down, p_up=up, **operands(weight, feedback), rows=rows, outputs=outputs, inputs=inputs,
                positions=positions, bound=feedback.bound, scale=feedback.scale,
                **product_options(feedback.mode, product_precision(down.dtype), tile),
            )  # fmt: skip


def _pointwise(grad: Tensor, input: Tensor, weight: Tensor, feedback: Feedback, window: Window) -> Tensor:
    """Compute δ_in of a 1×1 convolution without padding or groups."""
    layout, stride = reference.layout(input), window.stride
    images, positions = grad.shape[0], math.prod(grad.shape[2:])
    down = torch.empty_like(input[:, :, :: stride[0], :: stride[1]], memory_format=layout)
    split = (images * positions, 1) if layout == torch.channels_last else (images, positions)
    _product(down, grad.contiguous(memory_format=layout), weight, feedback, split)
    if down.shape == input.shape:
        return down
    full = torch.empty_like(input, memory_format=layout).zero_()
    full[:, :, :: stride[0], :: stride[1]] = down
    return full


def _depthwise(grad: Tensor, input: Tensor, weight: Tensor, feedback: Feedback, window: Window) -> Tensor:
    """Compute δ_in of a convolution with one input and one output channel per group."""
    layout = reference.layout(input)
    up, down = grad.contiguous(memory_format=layout), torch.empty_like(input, memory_format=layout)
    images, channels, height, width = input.shape
    rows = images * height * width
    options = depthwise_options(feedback.mode, layout)
    grid = (triton.cdiv(rows, options["BLOCK_R"]), triton.cdiv(channels, options["BLOCK_C"]))
    if down.numel():
        with torch.cuda.device_of(down):
            depthwise_kernel[grid](
                p_down=down, p_up=up, **operands(weight, feedback), rows=rows, channels=channels,
                height=height, width=width, up_height=up.shape[2], up_width=up.shape[3],
                bound=feedback.bound, scale=feedback.scale, kernel_h=weight.shape[2], kernel_w=weight.shape[3],
                stride_h=window.stride[0], stride_w=window.stride[1],
                padding_h=window.padding[0], padding_w=window.padding[1],
                dilation_h=window.dilation[0], dilation_w=window.dilation[1], **options,
            )  # fmt: skip
    return down
