"""PredictiveConv2d: a convolution whose output is refined iteratively to predict its input."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from bionas_fast.errors import InputError, unknown
from bionas_fast.nn import repeats
from bionas_fast.nn.batch_norm import normalise
from bionas_fast.nn.error_path import ErrorPath
from bionas_fast.nn.leaf import leaf
from bionas_fast.nn.transforms import refuse_transforms

_PATCH = 16  # side of the image of the power iteration, in strides
_WARM_UP = 30  # power iterations on new weights
_GRID = 16  # sampled frequencies per degree of the transfer matrix
_EPS = 1e-5  # added to the root mean square of the error

Kernels = tuple[Tensor, Tensor]  # the weights of W ⋆ and of Wᵀ ⋆
Pair = tuple[int, int]


class _Seen(NamedTuple):
    """The state that a forward pass reads besides its parameters."""

    direction: Tensor | None
    training: bool
    true_gradient: bool
    guarded: bool

    def copy(self) -> _Seen:
        """Return a copy that later passes do not change."""
        return self._replace(direction=None if self.direction is None else self.direction.clone())


class PredictiveConv2d(ErrorPath):
    """Predictive-coding convolution, [N, C_in, H, W] → [N, C_out, H', W'], H' and W' as for ``torch.nn.Conv2d``.

    With x = N(input) and r⁰ = φ(W ⋆ x + b), it takes ``steps`` descent steps on the energy ½‖e‖² + ½λ‖r − r⁰‖²::

        e = x − Wᵀ ⋆ r
        r ← r + g ⊙ β ⊙ (W ⋆ e − λ(r − r⁰))

    and returns N(r) + bypass ⋆ input. The term λ(r − r⁰) is scaled by the step like the rest of the gradient: therefore
    the energy decreases at every step for g β < 2 / (σ²max(W) + λ), with tied weights and no error normalisation.

    Sources: Han et al., Deep Predictive Coding Network with Local Recurrent Processing for Object Recognition, NeurIPS
    2018 (its block: ``tied=False, step_size="learned", rectify_error=True, bypass=True``); Rao & Ballard, Predictive
    coding in the visual cortex, Nature Neuroscience 1999 (the energy, the local rule).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in
            ``torch.nn.Conv2d``; the padding is a number or two.
        steps: the number of corrections of r; 0 for r = r⁰.
        step_size: β. ``None``: relu(b0 + 1) / σ²max(W) per channel with a learned ``b0`` [C_out], where σ²max follows W
            by one power iteration per forward pass in training. ``"learned"``: relu(b0 + 1). A number: that constant.
        decay: λ ≥ 0.
        gated: g = sigmoid(G ⋆ [r, W ⋆ e]) with a learned 1×1 convolution G; otherwise g = 1.
        tied: predict x with Wᵀ; otherwise with the transpose of ``feedback``, a separate weight of W's shape.
        normalize_error: divide e by its root mean square over each sample.
        rectify_error: e = relu(x − Wᵀ ⋆ r).
        activation: φ, ``"relu"`` or ``"identity"``.
        input_norm, output_norm: whether N is batch normalisation; otherwise the identity.
        bypass: add a 1×1 convolution of the input. Needs 2 · padding = dilation · (kernel_size − 1).
        credit: ``"unrolled"``: back-propagation through all steps. ``"local"``: the gradient of W is that of the energy
            at the final r, −corr(e, r) averaged over the batch, independent of the loss and its scale; an untied
            feedback weight gets the same gradient (Kolen & Pollack). The error of the loss reaches the input and all
            other parameters through r⁰ and the last step; the changes by the steps between count as constants.

    Buffers:
        direction: the vector of the power iteration; None if ``step_size`` does not need it.

    Raises:
        InputError: an argument out of range; a constant ``step_size`` ≥ 1 with untied weights, or ≥
            ``stability_bound()`` with tied ones, neither gated nor normalised. The latter also in a forward pass in
            training, when W has grown: there σ²max is the estimate of the power iteration, a lower bound that is a few
            per cent too small; not checked when compiled.
    """

    bias: Tensor | None
    b0: Tensor | None
    feedback: Tensor | None
    direction: Tensor | None

    exact_buffers: ClassVar[tuple[str, ...]] = ("direction",)  # of norm 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        steps: int = 3,
        step_size: float | str | None = None,
        decay: float = 0.0,
        gated: bool = False,
        tied: bool = True,
        normalize_error: bool = False,
        rectify_error: bool = False,
        activation: str = "relu",
        input_norm: bool = False,
        output_norm: bool = False,
        bypass: bool = False,
        credit: str = "unrolled",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = _whole("in_channels", in_channels)
        self.out_channels = _whole("out_channels", out_channels)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = _pair("stride", stride)
        self.padding = _pair("padding", padding, least=0)
        self.dilation = _pair("dilation", dilation)
        self.groups = _whole("groups", groups)
        self.steps = _whole("steps", steps, least=0)
        if in_channels % groups or out_channels % groups:
            raise InputError(f"groups: {groups} does not divide {in_channels} input and {out_channels} output channels")
        if activation not in ("relu", "identity"):
            raise unknown("activation", activation, ["relu", "identity"])
        if credit not in ("unrolled", "local"):
            raise unknown("credit", credit, ["unrolled", "local"])
        if isinstance(step_size, str) and step_size != "learned":
            raise unknown("step_size", step_size, ["learned"])
        constant = None if step_size is None or isinstance(step_size, str) else float(step_size)
        if constant is not None and not 0 < constant < math.inf:
            raise InputError(f"step_size: expected a positive number, got {step_size}")
        if constant is not None and constant >= 1 and not tied:
            raise InputError(f"step_size: {step_size} is at or beyond the bound for untied weights, 1")
        if not 0 <= decay < math.inf:
            raise InputError(f"decay: expected a number of at least 0, got {decay}")
        self.step_size = step_size if constant is None else constant
        self.decay = float(decay)
        self.tied = tied
        self.normalize_error = normalize_error
        self.rectify_error = rectify_error
        self.activation = activation
        self.credit = credit
        self._guarded = constant is not None and tied and not gated and not normalize_error
        self._geometry = (self.stride, self.padding, self.dilation, groups)
        self._spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if bypass and self._spans != [2 * p for p in self.padding]:
            raise InputError(f"bypass: needs padding with 2 * padding = {self._spans}, got {list(self.padding)}")
        # Dilation interleaves images and does not affect the norm, except for factors shared with the stride.
        height, width = (s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))
        self._dense_stride = (height, width)

        place: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, **place))
        self.register_parameter("feedback", None if tied else nn.Parameter(torch.empty(shape, **place)))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels, **place)) if bias else None)
        self.register_parameter("b0", None if constant else nn.Parameter(torch.empty(out_channels, **place)))
        patch = torch.empty(1, in_channels, _PATCH * height, _PATCH * width, **place)
        self.register_buffer("direction", patch if step_size is None or self._guarded else None)
        self.gate = nn.Conv2d(2 * out_channels, out_channels, 1, bias=False, **place) if gated else None
        self.bypass = nn.Conv2d(in_channels, out_channels, 1, self.stride, bias=False, **place) if bypass else None
        self.input_norm = nn.BatchNorm2d(in_channels, **place) if input_norm else None
        self.output_norm = nn.BatchNorm2d(out_channels, **place) if output_norm else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Redraw W, the feedback and b as ``torch.nn.Conv2d`` does; set b0 = 0; restart the power iteration."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.feedback is not None:
            nn.init.kaiming_uniform_(self.feedback, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        if self.b0 is not None:
            nn.init.zeros_(self.b0)
        if self.direction is not None:
            generator = torch.Generator().manual_seed(0)  # later weights do not depend on it
            self.direction.copy_(torch.randn(self.direction.shape, generator=generator))
            for _ in range(_WARM_UP):
                self._turn()
        if self._guarded and not self.weight.is_meta:
            self._refuse_at(self.stability_bound())

    def forward(self, input: Tensor) -> Tensor:
        """Compute [N, C_out, H', W'] from [N, C_in, H, W]; the batch dimension is optional.

        Raises:
            InputError: a wrong number of dimensions or channels, an image smaller than the kernel; see the class.
        """
        if isinstance(input, Proxy):
            return leaf(self, input)
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        self._check(input)
        if self.training and self.direction is not None:
            refuse_transforms(type(self).__name__)
        now = repeats.current()
        seen = self._see() if now is None else now.once(self, self._see, _Seen.copy)
        x = normalise(self.input_norm, input)
        local = self.credit == "local" and not seen.true_gradient
        kernels = self._kernels(detached=local)
        step = self._step(kernels, seen.direction, seen.guarded)
        r = r0 = self._start(x, kernels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not local):
            for _ in range(self.steps - 1):
                r = self._advance(x, r0, r, step, kernels)
        if local:
            r = r0 + (r - r0).detach()
        if self.steps:
            r = self._advance(x, r0, r, step, kernels)
        if local:
            e = self._error(x.detach(), r.detach(), kernels)
            r = _LocalCredit.apply(r, e, self._geometry, self.weight, self.feedback)
        output = normalise(self.output_norm, r)
        return output if self.bypass is None else output + self.bypass(input)

    @torch.no_grad()
    def energy(self, input: Tensor) -> Tensor:
        """Compute ½‖e‖² + ½λ‖r − r⁰‖² at r⁰ and after every step: [N, C_in, H, W] → [steps + 1], batch means.

        Always in evaluation mode. e is rectified if the layer rectifies it, but never normalised.

        Raises:
            InputError: the input is invalid, see :meth:`forward`.
        """
        if input.dim() == 3:
            return self.energy(input.unsqueeze(0))
        self._check(input)
        x, norm = input, self.input_norm
        kernels = self._kernels(detached=True)
        if norm is not None:
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        step = self._step(kernels, self.direction, guarded=False)
        r = r0 = self._start(x, kernels)
        energies = []
        for number in range(self.steps + 1):
            if number:
                r = self._advance(x, r0, r, step, kernels)
            e = self._error(x, r, kernels)
            energies.append((e.square().sum() + self.decay * (r - r0).square().sum()) / (2 * len(x)))
        return torch.stack(energies)

    @torch.no_grad()
    def stability_bound(self) -> float:
        """Compute 2 / (σ²max + λ): below this constant step the energy decreases at every step, for any image size.

        σmax is the norm of the convolution on an unbounded image: the largest singular value of its transfer matrix
        over all frequencies, overestimated by at most 2 %. On a finite image with zero padding, the convolution is a
        restriction of that operator; its norm is smaller and approaches σmax as the image grows. Takes seconds for 256
        channels.

        Raises:
            InputError: the weights are not tied.
        """
        if not self.tied:
            raise InputError("stability_bound: there is none for untied weights")
        curvature = _norm_squared(self.weight, self._dense_stride, self.groups) + self.decay
        return 2 / curvature if curvature else math.inf

    def to_torch(self) -> nn.Module:
        """Raise an InputError: torch.nn has no such layer."""
        raise InputError("expected a layer that torch.nn has, got one of predictive coding")

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, steps={self.steps}, step_size={self.step_size!r}, decay={self.decay}, "
            f"tied={self.tied}, credit={self.credit!r}"
        )

    def _kernels(self, detached: bool) -> Kernels:
        feedback = self.weight if self.feedback is None else self.feedback
        return (self.weight.detach(), feedback.detach()) if detached else (self.weight, feedback)

    def _start(self, x: Tensor, kernels: Kernels) -> Tensor:
        r0 = F.conv2d(x, kernels[0], self.bias, *self._geometry)
        return F.relu(r0) if self.activation == "relu" else r0

    def _error(self, x: Tensor, r: Tensor, kernels: Kernels) -> Tensor:
        e = x - _transposed(r, kernels[1], x.shape[2:], *self._geometry)
        return F.relu(e) if self.rectify_error else e

    def _advance(self, x: Tensor, r0: Tensor, r: Tensor, step: Tensor | float, kernels: Kernels) -> Tensor:
        e = self._error(x, r, kernels)
        if self.normalize_error:
            norm = torch.linalg.vector_norm(e, dim=(1, 2, 3), keepdim=True)
            e = e / (norm / math.sqrt(math.prod(e.shape[1:])) + _EPS)
        drive = F.conv2d(e, kernels[0], None, *self._geometry)
        if self.gate is not None:
            step = step * torch.sigmoid(self.gate(torch.cat([r, drive], 1)))
        return r + step * (drive - self.decay * (r - r0))

    def _see(self) -> _Seen:
        """Read the state of this pass, after a power iteration in training."""
        guarded = self._guarded and self.training and not torch.compiler.is_compiling()
        if self.training and self.direction is not None and (guarded or not isinstance(self.step_size, float)):
            self._turn()
        return _Seen(self.direction, self.training, self.true_gradient, guarded)

    def _step(self, kernels: Kernels, direction: Tensor | None, guarded: bool) -> Tensor | float:
        """Compute β, a number or [C_out, 1, 1]; with ``guarded``, refuse a number that is too large."""
        if isinstance(self.step_size, float):
            if guarded:
                self._refuse_at(2 / (self._sigma_squared(kernels[0], direction).item() + self.decay))
            return self.step_size
        assert self.b0 is not None
        step = F.relu(self.b0 + 1).view(-1, 1, 1)
        return step if direction is None else step / self._sigma_squared(kernels[0], direction)

    def _unbounded(self) -> tuple[Any, ...]:
        """Return the geometry of the convolution of images that are padded until no kernel leaves them."""
        return self._dense_stride, (self.kernel_size[0] - 1, self.kernel_size[1] - 1), (1, 1), self.groups

    @torch.no_grad()
    def _turn(self) -> None:
        """Run one power iteration."""
        assert self.direction is not None
        v = F.conv2d(self.direction, self.weight, None, *self._unbounded())
        v = _transposed(v, self.weight, self.direction.shape[2:], *self._unbounded())
        # Zero weights determine no direction.
        self.direction.copy_(torch.where(v.any(), v / v.norm(), self.direction))

    def _sigma_squared(self, weight: Tensor, direction: Tensor | None) -> Tensor:
        """Compute ‖W ⋆ v‖² ≤ σ²max for the direction v, of norm 1."""
        assert direction is not None
        # A copy: the backward pass may run after the next forward pass has changed the buffer.
        output = F.conv2d(direction.clone(), weight, None, *self._unbounded())
        return output.square().sum().clamp_min(torch.finfo(weight.dtype).eps)

    def _refuse_at(self, bound: float) -> None:
        if isinstance(self.step_size, float) and self.step_size >= bound:
            raise InputError(
                f"step_size: {self.step_size} is at or beyond the stability bound of these weights, "
                f"2 / (sigma_max^2 + decay) = {self.stability_bound():.6g}; take a smaller one, or None to follow them"
            )

    def _check(self, input: Tensor) -> None:
        if input.dim() != 4 or input.shape[1] != self.in_channels:
            raise InputError(f"input: expected shape [N, {self.in_channels}, H, W], got shape {list(input.shape)}")
        least = [span + 1 - 2 * p for span, p in zip(self._spans, self.padding, strict=True)]
        if any(n < m for n, m in zip(input.shape[2:], least, strict=True)):
            raise InputError(f"input: the kernel needs at least {least} positions, got shape {list(input.shape)}")


class _LocalCredit(torch.autograd.Function):
    """Identity of r and its error; gives each weight −corr(e, r) / N, the gradient of the energy at fixed r."""

    generate_vmap_rule = True

    @staticmethod
    def forward(r: Tensor, e: Tensor, geometry: Any, weight: Tensor, feedback: Tensor | None) -> Tensor:
        return r.clone()  # not a view, which would forbid in-place operations on the output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        r, e, ctx.geometry, weight, _ = inputs
        ctx.save_for_backward(r, e, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        r, e, weight = ctx.saved_tensors
        gradient = conv2d_weight(e.to(weight), weight.shape, r.to(weight), *ctx.geometry) / -len(r)
        return grad, None, None, gradient, gradient if ctx.needs_input_grad[4] else None


def _transposed(
    r: Tensor, weight: Tensor, size: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Compute Wᵀ ⋆ r for the convolution of images of ``size``: [N, C_out, H', W'] → [N, C_in, *size]."""
    unseen = [
        (n + 2 * p - d * (k - 1) - 1) % s  # trailing rows or columns that no kernel reaches
        for n, p, d, k, s in zip(size, padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    return F.conv_transpose2d(r, weight, None, stride, padding, unseen, groups, dilation)


def _norm_squared(weight: Tensor, stride: Pair, groups: int) -> float:
    """Compute an upper bound of σ²max of an undilated convolution on an unbounded image.

    A strided convolution equals a convolution with stride 1 of the interleaved images, one per phase of the stride.
    uᴴÂ(ω)ᴴÂ(ω)u is a non-negative trigonometric polynomial of degree d, the number of taps − 1 in each dimension;
    between n samples per period it exceeds the largest sample at most by the factor 1 / cos²(πd / 2n), which sin² of
    that degree attains.
    """
    rows, columns = (math.ceil(k / s) for k, s in zip(weight.shape[2:], stride, strict=True))
    padded = F.pad(weight.double(), (0, -weight.shape[3] % stride[1], 0, -weight.shape[2] % stride[0]))
    taps = padded.view(groups, len(weight) // groups, -1, rows, stride[0], columns, stride[1])
    taps = taps.permute(0, 3, 5, 1, 2, 4, 6).flatten(4)  # [groups, rows, columns, C_out, C_in · phases], per group
    samples = [max(1, _GRID * (n - 1)) for n in (rows, columns)]
    transfer = torch.fft.fft2(taps, s=samples, dim=(1, 2))[:, : samples[0] // 2 + 1]  # the rest is conjugate
    slack = math.prod(math.cos(math.pi * (n - 1) / (2 * m)) ** 2 for n, m in zip((rows, columns), samples, strict=True))
    return torch.linalg.matrix_norm(transfer, ord=2).max().item() ** 2 / slack


def _whole(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return value


def _pair(name: str, value: int | Pair, least: int = 1) -> Pair:
    """Return height and width from one number or two."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise InputError(f"{name}: expected one number or two, got {value!r}")
    return _whole(name, pair[0], least), _whole(name, pair[1], least)
