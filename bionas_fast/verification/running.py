"""All checks of the kernels of this machine, one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from bionas_fast import backends, native
from bionas_fast.errors import printable
from bionas_fast.runtime.arithmetic import precision
from bionas_fast.verification import feedback, hebbian, images, large, planar, supernet
from bionas_fast.verification.bounds import compare
from bionas_fast.verification.check import Check, Outcome, Target, wide
from bionas_fast.verification.modes import MODES

#: The first fields of an outcome.
_About = tuple[str, str, str, str, str, str, str]
#: The checks of each op that has kernels.
CHECKS: Mapping[str, Callable[[Target], Iterator[Check]]] = {
    "feedback_segments": feedback.segments,
    "feedback_linear": feedback.layers("linear"),
    "feedback_conv": feedback.layers("conv"),
    "feedback_conv_transpose": feedback.layers("conv_transpose"),
    "mixed_edges": supernet.checks,
    "hebbian_update": hebbian.checks,
    "planar_edges": planar.checks,
    "augmentation": images.checks,
}
#: Ops whose Triton kernels exist in several dtypes, and those whose compiled kernels have maps in bfloat16.
NARROW = ("feedback_segments", "feedback_linear", "feedback_conv", "mixed_edges")
NARROW_MAPS = ("mixed_edges", "planar_edges")
#: Seconds that all checks may take.
LIMIT = 120.0


def verify(limit: float = LIMIT) -> Iterator[Outcome]:
    """Check every kernel on every device of this machine against its reference in float64.

    Args:
        limit: seconds after which the remaining checks are skipped.

    Returns:
        One outcome per check, as soon as it is known.
    """
    end = time.monotonic() + limit
    for op, target, mode, check in _all():
        if isinstance(check, str):
            yield _skipped(op, target, mode, check)
        elif time.monotonic() > end:
            yield _skipped(op, target, mode, f"the {limit:g} seconds are over", check)
        else:
            yield run(op, target, check, mode)


def run(op: str, target: Target, check: Check, mode: str = "") -> Outcome:
    """Run a check in one of :data:`.MODES`, and compare; an exception is a failure."""
    about = _about(op, target, mode, check)
    try:
        with precision("ieee"):
            expected = check.expect(*wide(check.arguments))
        with precision(target.products), target.active():
            found = MODES[mode](check)
        error, bound, reason = compare(found, expected)
    except torch.cuda.OutOfMemoryError:
        return Outcome(*about, math.nan, math.nan, "skipped", "not enough memory on the device")
    except Exception as raised:
        reason = printable(f"{type(raised).__name__}: {' '.join(str(raised).split()):.300}")
        return Outcome(*about, math.inf, math.nan, "failed", reason)
    return Outcome(*about, error, bound, "failed" if reason else "ok", reason)


def _all() -> Iterator[tuple[str, Target, str, Check | str]]:
    """Iterate over op, target, mode, and check or the reason of a skip; what matters most comes first."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for device in ["cpu", *cards] if cards else ["cpu", "cuda"]:
        for op in CHECKS:
            for backend in ("native", "triton"):
                target = Target(backend, device)
                reason = _obstacle(op, target)
                if reason:
                    yield op, target, "", reason
                    continue
                for isa in native.isas() if (backend, device) == ("native", "cpu") else ("",):
                    own = Target(backend, device, isa=isa)
                    yield from ((op, own, "", check) for check in CHECKS[op](own))
    for op in CHECKS:
        if op in NARROW_MAPS and not _obstacle(op, Target("native", "cpu")):
            for isa in native.isas():
                own = Target("native", "cpu", "bfloat16", isa)
                yield from ((op, own, "", check) for check in CHECKS[op](own))
    for card in cards[:1]:
        yield from _on_a_card(card)


def _obstacle(op: str, target: Target) -> str:
    """Return the reason why a backend cannot run an op on this device; empty if it can."""
    device = torch.device(target.device).type
    if op not in backends.op_names():  # a kernel of the CPU library alone
        return native.obstacle(device) if target.backend == "native" else "not implemented for this op"
    if device == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    return backends.explain(op, device).reasons.get(target.backend, "")


def _on_a_card(card: str) -> Iterator[tuple[str, Target, str, Check | str]]:
    """Iterate over the further checks on a CUDA device: modes, dtypes, real sizes, more than 2³¹ elements."""
    targets = [(op, Target("native" if op == "hebbian_update" else "triton", card)) for op in CHECKS]
    targets = [(op, target) for op, target in targets if not _obstacle(op, target)]
    for mode in list(MODES)[1:]:
        for op, target in targets:
            yield from ((op, target, mode, check) for check in _one_of_each(CHECKS[op](target)))
    for op, target in targets:
        own = Target(target.backend, card, large=True)
        yield from ((op, own, "", check) for check in CHECKS[op](own))
    own = Target("triton", card, "float16")
    if any(op == "mixed_edges" for op, _ in targets):
        if reason := large.obstacle(own):
            yield "mixed_edges", own, "", f"more than 2³¹ elements: {reason}"
        else:
            yield from (("mixed_edges", own, "", check) for check in large.checks(own))
    for dtype in ("bfloat16", "tf32", "float16"):
        for op, target in targets:
            if op in NARROW:
                own = Target(target.backend, card, dtype)
                yield from ((op, own, "", check) for check in CHECKS[op](own))


def _one_of_each(checks: Iterator[Check]) -> list[Check]:
    """Select one check of each kernel: the second if there are several, for the first has the smallest tensors."""
    found: dict[str, list[Check]] = {}
    for check in checks:
        found.setdefault(check.kernel, []).append(check)
    return [own[min(1, len(own) - 1)] for own in found.values()]


def _about(op: str, target: Target, mode: str, check: Check | None) -> _About:
    backend = f"{target.backend} {target.isa}".strip()
    kernel, shape = (op, "") if check is None else (check.kernel, check.shape)
    return op, kernel, backend, target.device, target.dtype, shape, mode


def _skipped(op: str, target: Target, mode: str, reason: str, check: Check | None = None) -> Outcome:
    return Outcome(*_about(op, target, mode, check), math.nan, math.nan, "skipped", printable(reason))
