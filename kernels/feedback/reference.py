"""The specification of feedback weights and of the backward passes through them, in plain PyTorch.

Forward passes are PyTorch's own. Backward, for a layer y = W ⋆ x + b with feedback B:

    δ_in = convᵀ(δ_out; B),   ∂W = x ⊗ δ_out,   ∂b = Σ δ_out

Random magnitudes come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11),
which is counter-based: any element of any draw can be computed alone, on any device, with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..window import Window
from .records import Advance, Feedback, FeedbackSegments

#: (δ_in, ∂W, ∂b)
Grads = tuple[Tensor | None, Tensor | None, Tensor | None]

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(key: Sequence[Tensor | int], counter: Sequence[Tensor | int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute Philox4x32-10.

    Args:
        key: two 32-bit words.
        counter: four 32-bit words. All words are int64 tensors or numbers, and broadcast.

    Returns:
        Four 32-bit words, int64 tensors with values in [0, 2³²).
    """
    k0, k1 = key
    c0, c1, c2, c3 = (torch.as_tensor(word) for word in counter)
    for _ in range(10):
        # int64 products wrap modulo 2⁶⁴; shift and mask still yield both unsigned halves.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def uniform(shape: Sequence[int], stream: Tensor) -> Tensor:
    """Draw from [0, 1), in multiples of 2⁻²⁴: element i of draw d is word 0 of Philox at counter (i, d, 0, 0).

    Args:
        shape: the shape of the result; elements are counted in row-major order.
        stream: int64 [2], the seed (64 bits, the key) and the index of the draw.

    Returns:
        float32, on the stream's device.
    """
    seed, draw = stream.unbind()
    count = 1
    for size in shape:
        count *= size
    element = torch.arange(count, device=stream.device)
    zero = torch.zeros_like(seed)
    word = philox((seed & _LOW, (seed >> 32) & _LOW), (element, draw & _LOW, zero, zero))[0]
    return ((word >> 8).float() * 2.0**-24).reshape(shape)


def feedback_weight(weight: Tensor, feedback: Feedback) -> Tensor:
    """Compute B, shaped like ``weight`` and in its dtype."""
    mode = feedback.mode
    stored, stream = feedback.stored, feedback.stream
    if mode == "weight":
        return weight
    if mode == "sign":
        return weight.sign() * feedback.scale
    if mode == "drawn_sign":
        assert stream is not None
        return (uniform(weight.shape, stream) * feedback.bound).to(weight.dtype) * weight.sign()
    assert stored is not None
    if mode == "stored_sign":
        return stored.to(weight.dtype).abs() * weight.sign()
    return stored.to(weight.dtype)


def feedback_segments(
    weight: Tensor,
    stored: Tensor | None,
    stream: Tensor | None,
    segments: FeedbackSegments,
    advance: Advance | None = None,
) -> Tensor:
    """Compute B of several layers with concatenated weights, flat; zeros where the mode is ``custom``.

    Args:
        weight: flat.
        stored: the stored draws of the segments with mode ``stored`` or ``stored_sign``, concatenated; more may follow.
        stream: int64 [segments, 2].
        advance: the streams to advance.
    """
    if advance is not None:
        advance.apply()
    out = torch.zeros_like(weight)
    first = first_stored = 0
    for k, (length, mode, bound, scale) in enumerate(zip(*segments, strict=True)):
        part = slice(first, first + length)
        first += length
        read = None
        if mode.startswith("stored"):
            assert stored is not None
            read = stored[first_stored : first_stored + length]
            first_stored += length
        if mode != "custom":
            draw = None if stream is None else stream[k]
            out[part] = feedback_weight(weight[part], Feedback(mode, read, draw, bound, scale))
    return out


def layout(tensor: Tensor) -> torch.memory_format:
    """Return channels_last if the tensor has only that memory format, otherwise the contiguous format."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """Compute W ⋆ x + b, [N, C_out, …]."""
    stride, padding, dilation, groups = window
    return torch.convolution(input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


def conv_backward(grad: Tensor, input: Tensor, feedback: Tensor, window: Window, output_mask: Sequence[bool]) -> Grads:
    """Compute (δ_in, ∂W, ∂b) as selected by ``output_mask``.

    One call suffices: ∂W does not depend on the weight argument, so passing B changes only δ_in.
    """
    stride, padding, dilation, groups = window
    return torch.ops.aten.convolution_backward.default(
        grad,
        input,
        feedback,
        [feedback.shape[0]] if output_mask[2] else None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        groups,
        list(output_mask),
    )


def conv_transpose(
    input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, output_padding: Sequence[int]
) -> Tensor:
    """Compute Wᵀ ⋆ x + b, the transposed convolution with W of shape [C_in, C_out/groups, *kernel]."""
    stride, padding, dilation, groups = window
    return torch.convolution(input, weight, bias, stride, padding, dilation, True, list(output_padding), groups)


def conv_transpose_backward(
    grad: Tensor,
    input: Tensor,
    feedback: Tensor,
    window: Window,
    output_padding: Sequence[int],
    output_mask: Sequence[bool],
) -> Grads:
    """Compute (δ_in, ∂W, ∂b) as selected by ``output_mask``: δ_in = B ⋆ δ_out, with B shaped like W."""
    stride, padding, dilation, groups = window
    return torch.ops.aten.convolution_backward.default(
        grad,
        input,
        feedback,
        [feedback.shape[1] * groups] if output_mask[2] else None,
        stride,
        padding,
        dilation,
        True,
        list(output_padding),
        groups,
        list(output_mask),
    )


def direct_conv_transpose_weight(
    feedback: Tensor, input_size: Sequence[int], output_size: Sequence[int], window: Window
) -> Tensor:
    """Compute the matrix by which direct feedback passes a transposed convolution: δ_in = e F.

    Args:
        feedback: B, [classes, C_in, *kernel].
        input_size: the size of the layer's input, without batch and channels.
        output_size: the same of its output.

    Returns:
        F, [classes, C_in · positions]: B ⋆ E for E of one at every position.
    """
    classes, channels = feedback.shape[:2]
    stride, padding, dilation, _ = window
    plane = feedback.new_ones(1, 1, *output_size)
    kernels = feedback.reshape(classes * channels, 1, *feedback.shape[2:])
    spread = torch.convolution(plane, kernels, None, stride, padding, dilation, False, [0] * len(stride), 1)
    # An output padding beyond the stride reaches no input.
    inside = spread[(slice(None), slice(None), *(slice(size) for size in input_size))]
    return inside.reshape(classes, -1)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x Wᵀ + b for x of shape [..., in_features]."""
    return torch.nn.functional.linear(input, weight, bias)


def linear_backward(grad: Tensor, input: Tensor, feedback: Tensor, output_mask: Sequence[bool]) -> Grads:
    """Compute (δ_in, ∂W, ∂b) for δ_out of shape [..., out_features], as selected by ``output_mask``."""
    count = grad.shape[:-1].numel()
    rows = grad.reshape(count, grad.shape[-1])
    return (
        (rows @ feedback).reshape(input.shape) if output_mask[0] else None,
        rows.t() @ input.reshape(count, input.shape[-1]) if output_mask[1] else None,
        rows.sum(0) if output_mask[2] else None,
    )


def direct_conv_backward(
    error: Tensor,
    feedback: Tensor,
    input_shape: Sequence[int],
    output_size: Sequence[int],
    window: Window,
) -> Tensor:
    """Compute δ_in of direct feedback through a convolution: convᵀ(E; B), E(n, k, ·) = e(n, k) at every position.

    E is constant over positions, so one transposed convolution of the basis of errors serves all images.

    Args:
        error: e, the error at the logits, [N, classes].
        feedback: B, [classes, C_in, *kernel].
        input_shape: [N, C_in, …] of the layer's input.
        output_size: the size of the layer's output.
    """
    classes, channels = feedback.shape[:2]
    plane = feedback.new_ones(1, 1, *output_size)
    stride, padding, dilation, _ = window
    spread = torch.ops.aten.convolution_backward.default(
        plane,
        plane.new_empty(1, classes * channels, *input_shape[2:]),
        feedback.reshape(1, classes * channels, *feedback.shape[2:]),
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        1,
        [True, False, False],
    )[0]
    return (error @ spread.reshape(classes, -1)).reshape(tuple(input_shape))


def direct_conv_feedback_gradient(
    error: Tensor, input: Tensor, kernel: Sequence[int], output_size: Sequence[int], window: Window
) -> Tensor:
    """Compute the gradient of learned direct feedback of a convolution: E ⊗ x, E(n, k, ·) = e(n, k)/P at P positions.

    A mean over the positions: a B for each position, of which this is the mean, would learn at that pace.

    Args:
        error: e, the error at the logits, [N, classes].
        input: x, [N, C_in, *positions].
        kernel: the size of the kernel.
        output_size: the size of the layer's output.

    Returns:
        [classes, C_in, *kernel].
    """
    mean = error / max(math.prod(output_size), 1)
    spread = mean.reshape(*error.shape, *[1] * len(output_size)).expand(*error.shape, *output_size)
    like = input.new_empty(error.shape[1], input.shape[1], *kernel)
    gradient = conv_backward(spread.contiguous(), input.contiguous(), like, window, (False, True, False))[1]
    assert gradient is not None
    return gradient


def direct_linear_feedback_gradient(error: Tensor, input: Tensor) -> Tensor:
    """Compute the gradient of learned direct feedback of a linear layer, Σ e ⊗ x, x the mean over positions between.

    Args:
        error: e, the error at the logits, [N, classes].
        input: x, [N, ..., in_features].
    """
    rows = input.reshape(len(input), math.prod(input.shape[1:-1]), input.shape[-1])
    return error.t() @ rows.sum(1) / max(rows.shape[1], 1)


def direct_linear_backward(error: Tensor, feedback: Tensor, input_shape: Sequence[int]) -> Tensor:
    """Compute δ_in = e B of direct feedback through a linear layer, broadcast over the dimensions between.

    Args:
        error: e, [N, classes].
        feedback: B, [classes, in_features].
        input_shape: [N, ..., in_features].
    """
    down = error @ feedback
    between = [1] * (len(input_shape) - 2)
    return down.reshape(down.shape[0], *between, down.shape[1]).expand(tuple(input_shape)).contiguous()
