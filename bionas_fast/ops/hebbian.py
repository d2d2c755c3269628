"""hebbian_update: a layer's weights learn from its input and output, without an error signal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from bionas_fast import backends, native, operation_counts
from bionas_fast.errors import InputError, unknown
from bionas_fast.kernels.hebbian import records, reference
from bionas_fast.kernels.hebbian.records import NORMALISATIONS
from bionas_fast.kernels.window import Window
from bionas_fast.ops.geometry import Geometry, window

if TYPE_CHECKING:
    from typing_extensions import Unpack

RULES = tuple(records.RULES)

backends.declare("hebbian_update", native=native.obstacle_with_cuda)

_library = torch.library.Library("bionas_fast", "FRAGMENT")
_library.define(
    "hebbian_update(Tensor(a!) weight, Tensor x, Tensor u, Tensor? y, Tensor rate, str rule, float temperature, "
    "str normalisation, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str backend) -> Tensor"
)
_library.define("snapshot(Tensor weight) -> Tensor")

#: The similarities of a patch and a filter that channels can compete by.
SIMILARITIES = ("output", "raised_cosine")


class UpdateOptions(Geometry, total=False):
    """Further keyword arguments of :func:`hebbian_update`, in addition to those of :class:`Geometry`."""

    k: int
    similarity: str
    threshold: Tensor | None
    normalisation: str
    backend: str | None


class _Arguments(NamedTuple):
    """The arguments of the op ``hebbian_update`` after its tensors."""

    rule: str
    temperature: float
    normalisation: str
    window: Window
    backend: str

    @classmethod
    def read(cls, flat: Sequence[Any]) -> _Arguments:
        """Build the record from the flat arguments of the schema."""
        rule, temperature, normalisation, *geometry, backend = flat
        return cls(rule, temperature, normalisation, Window(*geometry), backend)

    def flat(self) -> tuple[Any, ...]:
        """Flatten the record to the arguments of the schema."""
        return (self.rule, self.temperature, self.normalisation, *self.window, self.backend)


@torch.library.impl(_library, "hebbian_update", "CompositeExplicitAutograd")
def _update_flat(weight: Tensor, x: Tensor, u: Tensor, y: Tensor | None, rate: Tensor, *flat: Any) -> Tensor:
    return _update((weight, x, u, y), rate, _Arguments.read(flat))


Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None]  # weight, x, u and y


def _update(tensors: Tensors, rate: Tensor, arguments: _Arguments) -> Tensor:
    weight, x, u, y = tensors
    rule, temperature, normalisation, shape, backend = arguments
    if backend == "native" and all(t is None or t.dtype == torch.float32 for t in tensors):
        return _update_native(tensors, rate, arguments)
    if y is None:
        y = reference.activity(u, rule, temperature, shape.groups)
    delta = reference.delta(weight, x, u, y, rule, shape)
    delta = reference.scaled(delta, normalisation, shape.groups).contiguous()
    moved = weight + rate.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1)) * delta
    weight.copy_(reference.normalise(moved, normalisation))
    return delta


def _update_native(tensors: Tensors, rate: Tensor, arguments: _Arguments) -> Tensor:
    """Update in one pass over u, one outer product (minimal filtering or PyTorch's), and one pass over W."""
    weight, x, u, y = tensors
    rule, temperature, normalisation, shape, _ = arguments
    kernels = torch.ops.bionas_fast_native
    groups = shape.groups
    activity, decay = records.RULES[rule]
    activity = activity if y is None else "linear"
    norm, total = None, weight.new_empty(0, dtype=torch.float64)
    if rule == "hebb":
        norm = reference.patch_norm(x, weight.shape[2:], shape)
    pushed = u if y is None else y
    if activity != "linear" or decay not in ("none", "lower") or norm is not None:
        linear = None if y is None else _rows(y)
        norm = None if norm is None else _rows(norm)
        made, total = kernels.hebbian_activity(_rows(u), linear, norm, activity, decay, temperature, groups)
        pushed = _maps(made, u) if made.numel() else pushed
    if _is_filtered(weight, pushed, shape):
        delta = kernels.weight_gradient(pushed.contiguous(), x.contiguous(), shape.padding)
    else:
        delta = reference.outer_product(weight, x, pushed, shape).contiguous()
    if decay == "lower":
        delta -= reference.lower(weight, pushed, groups)
    moved = weight.contiguous()
    rates = rate.to(torch.float32).expand(len(weight)).contiguous()
    positions = max(u.numel() // max(u.shape[1], 1), 1)
    kernels.hebbian_move(moved, delta, total, rates, positions, normalisation, groups)
    if not weight.is_contiguous():
        weight.copy_(moved)
    return delta


# Number of weights from which several threads have work, each in whole blocks of 32 channels.
_MANY = 2048


def _is_filtered(weight: Tensor, y: Tensor, window: Window) -> bool:
    """Whether the outer product runs by minimal filtering, with a quarter of the multiplications."""
    stride, _, dilation, groups = window
    return (
        weight.device.type == "cpu"
        and tuple(weight.shape[2:]) == (3, 3)
        and {*stride, *dilation, groups} == {1}
        and min(weight.shape[:2]) >= 32
        and weight.shape[0] * weight.shape[1] >= _MANY
        and y.numel() > 0
    )


# The kernel vectorises over the positions of one image. With fewer positions, all images are merged into one.
_FEW = 16


def _rows(maps: Tensor) -> Tensor:
    """Reshape [N, K, *positions] to [N, K, P] or [1, K, N · P]."""
    rows = maps.flatten(2)
    return (rows.transpose(0, 1).flatten(1).unsqueeze(0) if rows.shape[2] < _FEW else rows).contiguous()


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """Invert :func:`_rows`: reshape to [N, K, *positions]."""
    n, k = like.shape[:2]
    return rows.view_as(like) if rows.shape[0] == n else rows.view(k, n, *like.shape[2:]).transpose(0, 1)


@torch.library.register_fake("bionas_fast::hebbian_update", lib=_library)
def _update_fake(weight: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _count(
    weight: Tensor, x: Tensor, u: Tensor, y: Tensor | None, rate: Tensor, rule: str, *rest: Any, out_val: Any
) -> int:
    """Count the operations of an update: those of a weight gradient, and those of a decay that mixes neurons."""
    operations = operation_counts.convolution_backward(u, x, weight, [False, True])
    if records.RULES[rule].decay == "lower":
        groups = rest[-2]
        gram = u.numel() * u.shape[1] // groups
        operations += 2 * (gram + weight.numel() * weight.shape[0] // groups)
    return operations


operation_counts.declare(lambda: {torch.ops.bionas_fast.hebbian_update: _count})
operation_counts.declare_traced("bionas_fast::hebbian_update", "")


@torch.library.impl(_library, "snapshot", "CompositeExplicitAutograd")
def _snapshot(weight: Tensor) -> Tensor:
    return weight.clone()


@torch.library.register_fake("bionas_fast::snapshot", lib=_library)
def _snapshot_fake(weight: Tensor) -> Tensor:
    return torch.empty_like(weight)


def snapshot(weight: Tensor) -> Tensor:
    """Copy plastic weights for the backward pass of a forward pass that then changes them."""
    # A compiler may copy once more in the backward pass instead of saving a copy: it recomputes what is cheap.
    return torch.ops.bionas_fast.snapshot(weight) if torch.compiler.is_compiling() else weight.clone()


def hebbian_activity(
    u: Tensor, rule: str = "softhebb", *, temperature: float = 1.0, groups: int = 1, k: int = 1
) -> Tensor:
    """Compute the postsynaptic activity y of a layer's output under a rule.

    Args:
        u: [N, K, *positions], or [N, K].
        rule: one of ``plain``, ``hebb``, ``oja``, ``instar``, ``hard_wta``, ``soft_wta``, ``softhebb``, ``hpca``,
            ``hpca_relu`` and ``bcm``, with the mean of u² over the batch as its threshold; see
            ``bionas_fast.kernels.hebbian.reference`` for their formulas.
        temperature: t in softmax(t·u).
        groups: the number of groups; channels compete within their group.
        k: the number of channels of a group that win at every position, for ``hard_wta`` only.

    Returns:
        y, shaped like u.

    Raises:
        InputError: an unknown rule; groups that do not divide K; ``k`` with another rule, or not from 1 to the
            channels of a group.
    """
    _check_rule(rule)
    _check_groups("u", groups, u.shape[1])
    check_winners(rule, k, u.shape[1] // groups)
    return reference.activity(u, rule, temperature, groups, k)


@torch.no_grad()
def hebbian_update(
    weight: Tensor,
    x: Tensor,
    u: Tensor,
    y: Tensor | None = None,
    *,
    rule: str = "softhebb",
    rate: float | Tensor = 1e-3,
    temperature: float = 1.0,
    **options: Unpack[UpdateOptions],
) -> Tensor:
    """Add rate · Δ to ``weight``, in place.

    Δ is a mean over all positions of the batch: neither batch size nor resolution changes the step. It is 0 for an
    empty batch.

    Args:
        weight: W, [K, C/groups, *kernel] of a convolution or [K, D] of a linear layer.
        x: the layer's input, [N, C, *positions] or [..., D].
        u: its output before the update and without bias, [N, K, *positions] or [..., K].
        y: the activity, shaped like u; by default :func:`hebbian_activity` of u. With another activity, ``rule``
            determines only the decay.
        rule: the rule, as in :func:`hebbian_activity`.
        rate: η, or η_k as a tensor [K].
        temperature: t in softmax(t·u).
        options: ``stride``, ``padding``, ``dilation`` and ``groups`` of the convolution, by default 1, 0, 1 and 1;
            ``backend``, an explicit choice of implementation; ``normalisation``: ``none``, the default; ``clamp`` W to
            ±1; ``unit`` L2 norm of every filter; ``max``: divide Δ by its largest magnitude (SoftHebb); ``k``, as
            in :func:`hebbian_activity`; and ``similarity``, by which channels compete under ``hard_wta``, ``soft_wta``
            and ``softhebb``: ``output``, the default, is u; ``raised_cosine`` is that of :func:`raised_cosine`; and
            ``threshold``, θ of ``bcm``, [K], by default the mean of u² over the batch.

    Returns:
        Δ, shaped like ``weight``.

    Raises:
        InputError: mismatched shapes (the message names the argument); an unknown rule, normalisation or similarity;
            ``k``, ``similarity`` or ``threshold`` for a rule that has no use for them, or together with y.
    """
    _check_rule(rule)
    normalisation = options.pop("normalisation", "none")
    backend = options.pop("backend", None)
    k, similarity = options.pop("k", 1), options.pop("similarity", "output")
    threshold = options.pop("threshold", None)
    check_similarity(rule, similarity)
    if threshold is not None and (rule != "bcm" or threshold.shape != weight.shape[:1]):
        raise InputError(f"threshold: expected [{len(weight)}], of rule 'bcm', got {list(threshold.shape)} of {rule!r}")
    if y is not None and (k != 1 or similarity != "output" or threshold is not None):
        raise InputError("y: expected none together with k, similarity or threshold, which determine it")
    if normalisation not in NORMALISATIONS:
        raise unknown("normalisation", normalisation, NORMALISATIONS)
    for name, tensor in (("weight", weight), ("x", x), ("u", u)):
        if tensor.is_complex():
            raise InputError(f"{name}: expected real numbers, got {tensor.dtype}")
    dims = weight.dim() - 2
    if dims not in (0, 1, 2, 3):
        raise InputError(f"weight: expected [K, D] or [K, C/groups, *kernel], got {list(weight.shape)}")
    shape = window(max(dims, 1), **cast(Geometry, options))
    if dims == 0:
        if x.shape[-1:] != weight.shape[1:]:
            raise InputError(f"x: expected [..., {weight.shape[1]}], got shape {list(x.shape)}")
        if u.shape != (*x.shape[:-1], weight.shape[0]):
            raise InputError(f"u: expected {[*x.shape[:-1], weight.shape[0]]}, got {list(u.shape)}")
        shape = Window([1], [0], [1], shape.groups)
        view = weight.unsqueeze(-1)
        flat_x, flat_u = _positions(x), _positions(u)
        flat_y = None if y is None else _positions(y)
    else:
        _check_convolution(weight, x, u, shape)
        view, flat_y = weight, y
        flat_x, flat_u = x, u
    if y is not None and y.shape != u.shape:
        raise InputError(f"y: expected the shape of u, {list(u.shape)}, got {list(y.shape)}")
    check_winners(rule, k, weight.shape[0] // shape.groups)
    if k > 1 or similarity != "output":
        ranked = flat_u if similarity == "output" else _raised_cosine(flat_x, view, flat_u, shape)
        flat_y = reference.activity(ranked, rule, temperature, shape.groups, k)
    if threshold is not None:
        flat_y = flat_u * (flat_u - threshold.to(flat_u.dtype).view(-1, *[1] * (flat_u.dim() - 2)))
    elif rule in records.COMPUTED_BEFORE and flat_y is None:
        flat_y = reference.activity(flat_u, rule, temperature, shape.groups)
    if isinstance(rate, Tensor):
        rates = rate.to(weight.device, weight.dtype)
    else:
        rates = weight.new_full(weight.shape[:1], rate)
    if rates.dim() and rates.shape != (weight.shape[0],):
        raise InputError(f"rate: expected a number or [{weight.shape[0]}], got shape {list(rates.shape)}")
    chosen = backends.choose("hebbian_update", weight.device.type, backend)
    arguments = _Arguments(rule, float(temperature), normalisation, shape, chosen)
    if backends.traced():
        made = torch.ops.bionas_fast.hebbian_update(view, flat_x, flat_u, flat_y, rates, *arguments.flat())
    else:  # bypasses the dispatcher, which takes as long as a small update
        made = _update((view, flat_x, flat_u, flat_y), rates, arguments)
    return made.view_as(weight)


def _positions(rows: Tensor) -> Tensor:
    """Reshape [..., D] to [N, D, 1]."""
    return rows.reshape(-1, rows.shape[-1], 1)


def adaptive_rate(weight: Tensor, rate: float, power: float = 0.5) -> Tensor:
    """Compute η_k = η · (|‖W_k‖ − 1| + 1e-10)^power, [K], which decays as norms approach 1 (SoftHebb, section 3)."""
    norm = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)
    return rate * ((norm - 1).abs() + 1e-10).pow(power)


def triangle(u: Tensor, power: float = 1.0) -> Tensor:
    """Compute ReLU(u − mean of u over channels)^power, [N, K, *positions] (Coates et al. 2011; SoftHebb)."""
    return torch.relu(u - u.mean(dim=1, keepdim=True)).pow(power)


def raised_cosine(x: Tensor, weight: Tensor, u: Tensor, **geometry: Unpack[Geometry]) -> Tensor:
    """Compute ((cos(x_p, W_k) + 1) / 2)², a similarity in [0, 1] that replaces u in a competition (FastHebb).

    Args:
        x, weight, u: input, weights and output of a convolution, as in :func:`hebbian_update`.
        geometry: stride, padding, dilation and groups of the convolution.
    """
    shape = window(weight.dim() - 2, **geometry)
    _check_convolution(weight, x, u, shape)
    return _raised_cosine(x, weight, u, shape)


def _raised_cosine(x: Tensor, weight: Tensor, u: Tensor, shape: Window) -> Tensor:
    norm = reference.patch_norm(x, weight.shape[2:], shape).repeat_interleave(u.shape[1] // shape.groups, dim=1)
    own = torch.linalg.vector_norm(weight.flatten(1), dim=1).view(-1, *[1] * (weight.dim() - 2))
    return ((u / (norm * own).clamp_min(reference.NORM_EPSILON) + 1) / 2).square()


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise unknown("rule", rule, RULES)


def check_winners(rule: str, k: int, channels: int) -> None:
    """Raise an InputError unless k of so many channels of a group can win under the rule."""
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= max(channels, 1):
        raise InputError(f"k: expected 1 to {channels}, the channels of a group, got {k!r}")
    if k > 1 and rule != "hard_wta":
        raise InputError(f"k: expected 1 for rule {rule!r}, got {k}; only hard_wta has several winners")


def check_similarity(rule: str, similarity: str) -> None:
    """Raise an InputError unless channels can compete by this similarity under the rule."""
    if similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)
    if similarity != "output" and records.RULES[rule].activity not in records.COMPETITIONS:
        raise InputError(f"similarity: expected 'output' for rule {rule!r}, whose channels do not compete")


def _check_groups(name: str, groups: int, channels: int) -> None:
    if groups < 1 or channels % groups:
        raise InputError(f"groups: {groups} does not divide the {channels} channels of {name}")


def _check_convolution(weight: Tensor, x: Tensor, u: Tensor, window: Window) -> None:
    stride, padding, dilation, groups = window
    _check_groups("weight", groups, weight.shape[0])
    if x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * groups:
        raise InputError(f"x: expected [N, {weight.shape[1] * groups}, *positions], got shape {list(x.shape)}")
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    if list(u.shape) != [x.shape[0], weight.shape[0], *size]:
        raise InputError(f"u: expected {[x.shape[0], weight.shape[0], *size]}, got {list(u.shape)}")
